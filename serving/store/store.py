"""The store as handlers see it: three kinds of objects over one database."""

from dataclasses import dataclass

from .chats import ChatStore
from .conversations import ConversationStore
from .database import Database
from .responses import ResponseStore
from .unfinished import UnfinishedStore


@dataclass(frozen=True, slots=True)
class Store:
    """What outlives a request."""

    responses: ResponseStore
    unfinished: UnfinishedStore
    conversations: ConversationStore
    chats: ChatStore
    database: Database


def open_store(database: Database) -> Store:
    """The store of a database, which is opened when it is first used."""
    return Store(
        ResponseStore(database), UnfinishedStore(database), ConversationStore(database), ChatStore(database), database
    )
