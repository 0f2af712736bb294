package e2e

import "os"

// benchEnv is set by `make bench`, which wants programs without the race detector.
const benchEnv = "AGENTPOD_BENCH"

func benching() bool { return os.Getenv(benchEnv) != "" }
