CREATE TABLE api_keys (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    -- SHA-256 of the key, 32 bytes.
    hash BLOB NOT NULL UNIQUE,
    -- First characters of the key, to tell keys apart in a list.
    prefix TEXT NOT NULL,
    -- Unix seconds.
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;

-- One row, written at each start: a full or read-only disk shows then, not at the first key.
CREATE TABLE starts (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    count INTEGER NOT NULL
) STRICT;
