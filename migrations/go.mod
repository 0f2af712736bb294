module github.com/agentpod/agentpod/migrations

go 1.26.0
