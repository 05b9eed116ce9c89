"""LM Studio's native API: models with their metadata, chats with statistics, loading and fetching by hand."""
