"""What each key may use over time: `gate` stops requests, `meter` counts for this process, `ledger` for all of them."""
