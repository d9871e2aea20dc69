"""Files on disk: safe opening, strict JSON, known keys, copies, damage, vectors."""
