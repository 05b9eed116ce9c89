"""Models whose template takes tools in no known way: the answer is a JSON object of a name and arguments."""

from .bare_json import BareJsonFormat

PLAIN_JSON = BareJsonFormat(markers=("<tool_call>",))
