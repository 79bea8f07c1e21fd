-- Files of clients; their contents are in the file store. Times are Unix seconds.
CREATE TABLE files (
    -- Ids grow with time.
    id TEXT NOT NULL PRIMARY KEY,
    -- Whose it is.
    key_id INTEGER NOT NULL,
    -- `pending` while it is written, `ready`, or `deleted` until its contents are gone.
    state TEXT NOT NULL,
    purpose TEXT NOT NULL,
    filename TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX files_by_key ON files (key_id, id);

CREATE TABLE batches (
    id TEXT NOT NULL PRIMARY KEY,
    key_id INTEGER NOT NULL,
    status TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    input_file_id TEXT NOT NULL,
    -- JSON object, as sent; NULL without one.
    metadata TEXT,
    -- JSON array of what is wrong with the input.
    errors TEXT,
    -- Chosen when the batch is finalized, before the files are written.
    output_file_id TEXT,
    error_file_id TEXT,
    -- Seconds that these are kept; NULL for the server's default.
    output_expires_after INTEGER,
    total INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    reasoning_tokens INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    in_progress_at INTEGER,
    finalizing_at INTEGER,
    completed_at INTEGER,
    failed_at INTEGER,
    expired_at INTEGER,
    cancelling_at INTEGER,
    cancelled_at INTEGER,
    -- The coordinator that runs it, and until when it may without saying so again.
    lease_owner TEXT,
    lease_expires_at INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX batches_by_key ON batches (key_id, id);
CREATE INDEX batches_by_status ON batches (status, id);
CREATE INDEX batches_by_input ON batches (input_file_id);

-- The requests of batches that are not over.
CREATE TABLE batch_lines (
    batch_id TEXT NOT NULL,
    -- Counts from 1, as in the input file.
    line INTEGER NOT NULL,
    custom_id TEXT NOT NULL,
    -- Where the request is in the input file, in bytes.
    begins_at INTEGER NOT NULL,
    length INTEGER NOT NULL,
    -- `completed` or `failed`; NULL until there is a result.
    outcome TEXT,
    -- The line of the output or error file.
    result TEXT,
    PRIMARY KEY (batch_id, line)
) STRICT, WITHOUT ROWID;
