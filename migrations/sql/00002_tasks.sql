-- +goose Up
-- cloudflare_sandboxes of the original system is in here: its columns are the
-- last five before the times.
CREATE TABLE sandboxes (
    id                  TEXT      NOT NULL PRIMARY KEY,
    user_id             TEXT      NOT NULL REFERENCES users (id),
    provider            TEXT      NOT NULL,
    name                TEXT      NOT NULL,
    slug                TEXT      NOT NULL,
    description         TEXT      NOT NULL DEFAULT '',
    repo_name           TEXT      NOT NULL DEFAULT '',
    github_url          TEXT      NOT NULL DEFAULT '',
    git_branch          TEXT      NOT NULL DEFAULT '',
    resource_tier_id    TEXT      NOT NULL DEFAULT '',
    flavor_id           TEXT      NOT NULL DEFAULT '',
    addon_ids           TEXT      NOT NULL DEFAULT '[]',
    container_id        TEXT      NOT NULL DEFAULT '',
    container_name      TEXT      NOT NULL DEFAULT '',
    region              TEXT      NOT NULL DEFAULT '',
    tier                TEXT      NOT NULL DEFAULT '',
    error_message       TEXT      NOT NULL DEFAULT '',
    started_at          TIMESTAMP,
    event_at            TIMESTAMP, -- of the newest event that told its status
    event_key           TEXT      NOT NULL DEFAULT '', -- orders events of one moment
    status              TEXT      NOT NULL CHECK (status IN ('created', 'starting', 'running', 'stopping', 'stopped', 'sleeping', 'error')),
    worker_url          TEXT      NOT NULL DEFAULT '',
    config_hash         TEXT      NOT NULL DEFAULT '',
    workspace_synced_at TIMESTAMP,
    last_active_at      TIMESTAMP,
    created_at          TIMESTAMP NOT NULL,
    updated_at          TIMESTAMP NOT NULL,
    UNIQUE (user_id, slug)
);
CREATE INDEX sandboxes_user ON sandboxes (user_id, created_at, id);
CREATE INDEX sandboxes_user_status ON sandboxes (user_id, status, created_at, id);

CREATE TABLE agent_tasks (
    id             TEXT      NOT NULL PRIMARY KEY,
    user_id        TEXT      NOT NULL REFERENCES users (id),
    sandbox_id     TEXT      REFERENCES sandboxes (id) ON DELETE SET NULL,
    provider       TEXT      NOT NULL,
    status         TEXT      NOT NULL CHECK (status IN ('pending', 'running', 'completed', 'failed', 'cancelled')),
    message        TEXT      NOT NULL,
    response       TEXT      NOT NULL DEFAULT '',
    git_url        TEXT      NOT NULL DEFAULT '',
    git_branch     TEXT      NOT NULL DEFAULT '',
    model_provider TEXT      NOT NULL DEFAULT '',
    model_id       TEXT      NOT NULL DEFAULT '',
    session_id     TEXT      NOT NULL DEFAULT '',
    error          TEXT      NOT NULL DEFAULT '',
    metadata       TEXT      NOT NULL DEFAULT '{}',
    new_sandbox    BOOLEAN   NOT NULL DEFAULT FALSE, -- the sandbox was made for this task
    lease_owner    TEXT      NOT NULL DEFAULT '',
    lease_until    TIMESTAMP NOT NULL, -- who runs it says so again before this
    attempts       BIGINT    NOT NULL DEFAULT 0,
    event_seq      BIGINT    NOT NULL DEFAULT 0,
    event_bytes    BIGINT    NOT NULL DEFAULT 0,
    created_at     TIMESTAMP NOT NULL,
    completed_at   TIMESTAMP,
    CHECK ((completed_at IS NULL) = (status IN ('pending', 'running')))
);
CREATE INDEX agent_tasks_user ON agent_tasks (user_id, created_at, id);
CREATE INDEX agent_tasks_sandbox ON agent_tasks (sandbox_id);
CREATE INDEX agent_tasks_open ON agent_tasks (lease_until, id) WHERE status IN ('pending', 'running');

CREATE TABLE agent_task_events (
    task_id    TEXT      NOT NULL REFERENCES agent_tasks (id) ON DELETE CASCADE,
    seq        BIGINT    NOT NULL, -- from 1, without a gap
    type       TEXT      NOT NULL,
    data       TEXT      NOT NULL,
    created_at TIMESTAMP NOT NULL,
    PRIMARY KEY (task_id, seq)
);

CREATE TABLE teams (
    id         TEXT      NOT NULL PRIMARY KEY,
    user_id    TEXT      NOT NULL REFERENCES users (id),
    provider   TEXT      NOT NULL,
    git_url    TEXT      NOT NULL DEFAULT '',
    git_branch TEXT      NOT NULL DEFAULT '',
    created_at TIMESTAMP NOT NULL
);
CREATE INDEX teams_user ON teams (user_id, created_at, id);

-- Each agent of a team is a task, and has its state there.
CREATE TABLE team_agents (
    team_id  TEXT   NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    position BIGINT NOT NULL, -- from 0, as they were asked for
    role     TEXT   NOT NULL,
    task_id  TEXT   NOT NULL UNIQUE REFERENCES agent_tasks (id) ON DELETE CASCADE,
    PRIMARY KEY (team_id, position)
);

CREATE TABLE task_templates (
    id           TEXT      NOT NULL PRIMARY KEY,
    user_id      TEXT      REFERENCES users (id) ON DELETE CASCADE, -- NULL: for everybody
    name         TEXT      NOT NULL,
    description  TEXT      NOT NULL DEFAULT '',
    icon         TEXT      NOT NULL DEFAULT '',
    category     TEXT      NOT NULL DEFAULT '',
    prompt       TEXT      NOT NULL,
    placeholders TEXT      NOT NULL DEFAULT '[]',
    created_at   TIMESTAMP NOT NULL,
    updated_at   TIMESTAMP NOT NULL
);
CREATE INDEX task_templates_user ON task_templates (user_id, created_at, id);

-- +goose Down
DROP TABLE task_templates;
DROP TABLE team_agents;
DROP TABLE teams;
DROP TABLE agent_task_events;
DROP TABLE agent_tasks;
DROP TABLE sandboxes;
