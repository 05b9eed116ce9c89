"""`penstock bench`: load any OpenAI-compatible server and measure what its clients feel.

The flow: `cli` turns arguments into `settings`; `calibration` asks the server how many tokens a word costs;
`processes` starts the client processes, each of which runs `load`, sending what `workload` plans through `client`;
`answers` reads what comes back. The records of all processes meet in `summary`, and leave as a table and a JSON
file (`report`), a plot (`plot`) or beside another run (`compare`).
"""
