"""What a request's body says: strict JSON, fields with types, items, and the options of ours."""
