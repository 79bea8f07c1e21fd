-- Files of clients; their contents are in the file store. Times are Unix seconds.
CREATE TABLE files (
    -- Ids grow with time.
    id TEXT NOT NULL PRIMARY KEY,
    -- Whose it is.
    key_id BIGINT NOT NULL,
    -- `pending` while it is written, `ready`, or `deleted` until its contents are gone.
    state TEXT NOT NULL,
    purpose TEXT NOT NULL,
    filename TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT
);
CREATE INDEX files_by_key ON files (key_id, id);

CREATE TABLE batches (
    id TEXT NOT NULL PRIMARY KEY,
    key_id BIGINT NOT NULL,
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
    output_expires_after BIGINT,
    total BIGINT NOT NULL DEFAULT 0,
    completed BIGINT NOT NULL DEFAULT 0,
    failed BIGINT NOT NULL DEFAULT 0,
    prompt_tokens BIGINT NOT NULL DEFAULT 0,
    cached_tokens BIGINT NOT NULL DEFAULT 0,
    completion_tokens BIGINT NOT NULL DEFAULT 0,
    reasoning_tokens BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    in_progress_at BIGINT,
    finalizing_at BIGINT,
    completed_at BIGINT,
    failed_at BIGINT,
    expired_at BIGINT,
    cancelling_at BIGINT,
    cancelled_at BIGINT,
    -- The coordinator that runs it, and until when it may without saying so again.
    lease_owner TEXT,
    lease_expires_at BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX batches_by_key ON batches (key_id, id);
CREATE INDEX batches_by_status ON batches (status, id);
CREATE INDEX batches_by_input ON batches (input_file_id);

-- The requests of batches that are not over.
CREATE TABLE batch_lines (
    batch_id TEXT NOT NULL,
    -- Counts from 1, as in the input file.
    line BIGINT NOT NULL,
    custom_id TEXT NOT NULL,
    -- Where the request is in the input file, in bytes.
    begins_at BIGINT NOT NULL,
    length BIGINT NOT NULL,
    -- `completed` or `failed`; NULL until there is a result.
    outcome TEXT,
    -- The line of the output or error file.
    result TEXT,
    PRIMARY KEY (batch_id, line)
);
