CREATE TABLE api_keys (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT NOT NULL,
    -- SHA-256 of the key, 32 bytes.
    hash BYTEA NOT NULL UNIQUE,
    -- First characters of the key, to tell keys apart in a list.
    prefix TEXT NOT NULL,
    -- Unix seconds, like all times here.
    created_at BIGINT NOT NULL,
    revoked_at BIGINT,
    -- Limits; NULL is no limit.
    expires_at BIGINT,
    -- Disabled is not revoked: it can be undone.
    disabled_at BIGINT,
    -- JSON array of the ids that the key may ask for; an empty one stands for all.
    models TEXT NOT NULL DEFAULT '[]',
    requests_per_minute BIGINT CHECK (requests_per_minute > 0),
    tokens_per_minute BIGINT CHECK (tokens_per_minute > 0),
    concurrent_requests BIGINT CHECK (concurrent_requests > 0),
    monthly_tokens BIGINT CHECK (monthly_tokens > 0)
);

-- One row, written at each start: a full or read-only disk shows then, not at the first key.
CREATE TABLE starts (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    count BIGINT NOT NULL
);

-- What each key used of each model on each day in UTC. No reference to the key: a bill outlives it.
CREATE TABLE usage (
    key_id BIGINT NOT NULL,
    -- YYYY-MM-DD.
    day TEXT NOT NULL,
    model TEXT NOT NULL,
    requests BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    -- Part of the prompt's.
    cached_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    -- Part of the completion's.
    reasoning_tokens BIGINT NOT NULL,
    PRIMARY KEY (key_id, day, model)
);
CREATE INDEX usage_by_day ON usage (day);

-- The last batch of each ledger that writes here, so that one sent again is not counted again.
CREATE TABLE usage_writers (
    writer TEXT NOT NULL PRIMARY KEY,
    batch BIGINT NOT NULL,
    written_at BIGINT NOT NULL
);
