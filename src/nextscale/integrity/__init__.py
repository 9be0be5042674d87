"""What ran, on what, and whether anybody changed it since: ledger, anchors, fingerprint."""
