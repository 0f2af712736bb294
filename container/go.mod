module github.com/agentpod/agentpod/container

go 1.26.0

require github.com/agentpod/agentpod/shared v0.0.0

require (
	github.com/cenkalti/backoff/v5 v5.0.3
	go.uber.org/goleak v1.3.0
	golang.org/x/sys v0.49.0
	pgregory.net/rapid v1.3.0
)

replace github.com/agentpod/agentpod/shared => ../shared
