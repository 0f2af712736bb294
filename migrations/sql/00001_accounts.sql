-- One set for Postgres and SQLite: TIMESTAMP is UTC, JSON is TEXT.
-- +goose Up
CREATE TABLE users (
    id             TEXT      NOT NULL PRIMARY KEY,
    name           TEXT      NOT NULL,
    email          TEXT      NOT NULL UNIQUE, -- lower case
    email_verified BOOLEAN   NOT NULL DEFAULT FALSE,
    image          TEXT      NOT NULL DEFAULT '',
    role           TEXT      NOT NULL CHECK (role IN ('user', 'admin', 'service')),
    founder        BOOLEAN   NOT NULL DEFAULT FALSE, -- the first to sign up, and so admin
    banned         BOOLEAN   NOT NULL DEFAULT FALSE,
    created_at     TIMESTAMP NOT NULL,
    updated_at     TIMESTAMP NOT NULL
);
-- Two who sign up at once cannot both be the first.
CREATE UNIQUE INDEX users_founder ON users (founder) WHERE founder;

CREATE TABLE sessions (
    id         TEXT      NOT NULL PRIMARY KEY,
    user_id    TEXT      NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    token_hash TEXT      NOT NULL UNIQUE, -- SHA-256 in hex
    remember   BOOLEAN   NOT NULL DEFAULT TRUE,
    ip_address TEXT      NOT NULL DEFAULT '',
    user_agent TEXT      NOT NULL DEFAULT '',
    expires_at TIMESTAMP NOT NULL,
    created_at TIMESTAMP NOT NULL,
    updated_at TIMESTAMP NOT NULL
);
CREATE INDEX sessions_user ON sessions (user_id, created_at, id);

-- A user's ways to sign in. That of e-mail and password has provider_id 'credential'.
CREATE TABLE accounts (
    id          TEXT      NOT NULL PRIMARY KEY,
    user_id     TEXT      NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    provider_id TEXT      NOT NULL,
    account_id  TEXT      NOT NULL,
    password    TEXT      NOT NULL DEFAULT '', -- argon2id, in PHC's string format
    created_at  TIMESTAMP NOT NULL,
    updated_at  TIMESTAMP NOT NULL,
    UNIQUE (provider_id, account_id)
);
CREATE INDEX accounts_user ON accounts (user_id);

-- +goose Down
DROP TABLE accounts;
DROP TABLE sessions;
DROP TABLE users;
