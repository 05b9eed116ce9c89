"""The shapes of answers, for the API's description alone: handlers write their answers as plain data."""
