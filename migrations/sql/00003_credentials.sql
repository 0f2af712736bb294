-- +goose Up
CREATE TABLE provider_credentials (
    id          TEXT      NOT NULL PRIMARY KEY,
    user_id     TEXT      NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    provider_id TEXT      NOT NULL,
    sealed      TEXT      NOT NULL,
    key_id      TEXT      NOT NULL, -- of the key that sealed it
    is_default  BOOLEAN   NOT NULL DEFAULT FALSE,
    created_at  TIMESTAMP NOT NULL,
    updated_at  TIMESTAMP NOT NULL,
    UNIQUE (user_id, provider_id)
);
CREATE UNIQUE INDEX provider_credentials_default ON provider_credentials (user_id) WHERE is_default;
-- A rotation reads what former keys have sealed.
CREATE INDEX provider_credentials_key ON provider_credentials (key_id, id);

CREATE TABLE user_opencode_config (
    user_id    TEXT      NOT NULL PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    settings   TEXT      NOT NULL DEFAULT '{}',
    agents_md  TEXT      NOT NULL DEFAULT '',
    created_at TIMESTAMP NOT NULL,
    updated_at TIMESTAMP NOT NULL
);

CREATE TABLE user_opencode_files (
    user_id    TEXT      NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    type       TEXT      NOT NULL CHECK (type IN ('agent', 'command', 'tool', 'plugin')),
    name       TEXT      NOT NULL,
    extension  TEXT      NOT NULL CHECK (extension IN ('md', 'ts', 'js')),
    content    TEXT      NOT NULL,
    created_at TIMESTAMP NOT NULL,
    updated_at TIMESTAMP NOT NULL,
    PRIMARY KEY (user_id, type, name)
);

-- +goose Down
DROP TABLE user_opencode_files;
DROP TABLE user_opencode_config;
DROP TABLE provider_credentials;
