module github.com/agentpod/agentpod/api

go 1.26.0
