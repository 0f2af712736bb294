// Package chaos injects faults into the real programs and checks that nothing
// that they acknowledged is lost. Gateway, API, Docker engine, S3 server and
// Postgres are real; only OpenCode is a stand-in, but for -chaos.real points.
// docs/reliability.md says what is tried, how to run it, and what came of it.
//
// Everything runs in namespaces of its own (namespace_test.go), so a fault of the
// engine hits no other engine's sandboxes. A world (world_test.go) is what all points share; a
// lane (lane_test.go) is one gateway in it with its API. A point (point_test.go) is
// a seeded workload (workload_test.go), one fault of the table (faults_test.go), and
// the oracle's checks (oracle_test.go) of what was acknowledged (ledger_test.go).
package chaos

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// options are the parameters of a run; the defaults are those of `make test`.
type options struct {
	seed    uint64
	kinds   string
	count   int
	real    int
	lanes   int
	stop    bool
	within  time.Duration
	reports string
}

// run is what this run was asked for.
//
//nolint:gochecknoglobals // flags of the test binary
var run options

// The defaults: what `make test` has less than three minutes for.
const (
	defaultSeed  = 14
	defaultCount = 24
	defaultLanes = 8
	// defaultTime is how long points are begun: together with what comes before the first
	// and after the last it is three minutes.
	defaultTime = 80 * time.Second
)

func TestMain(m *testing.M) {
	flag.Uint64Var(&run.seed, "chaos.seed", defaultSeed, "what everything random is derived from")
	flag.StringVar(&run.kinds, "chaos.kinds", "", "names of kinds, or patterns such as store-*, separated by commas; empty means all")
	flag.IntVar(&run.count, "chaos.count", defaultCount, "how many points with the stand-in for OpenCode")
	flag.IntVar(&run.real, "chaos.real", 0, "how many points with the real OpenCode")
	flag.IntVar(&run.lanes, "chaos.lanes", defaultLanes, "how many gateways work at once")
	flag.BoolVar(&run.stop, "chaos.stop", false, "end the run at the first violation")
	flag.DurationVar(&run.within, "chaos.within", defaultTime, "how long points are begun; 0 for as long as it takes")
	flag.StringVar(&run.reports, "chaos.reports", "", "the folder of the report and of the logs of what failed; empty means .cache/chaos of the repository")
	flag.Parse()
	if !wanted() {
		os.Exit(m.Run()) // as in `make browser`: no world is needed
	}
	code, err := enter(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// worldTest is the test that needs a world.
const worldTest = "TestFaultsOfTheRealPrograms"

// wanted tells whether that test is among those that are to run.
func wanted() bool {
	if flag.Lookup("test.list").Value.String() != "" {
		return false
	}
	pattern, _, _ := strings.Cut(flag.Lookup("test.run").Value.String(), "/")
	ok, err := regexp.MatchString(pattern, worldTest)
	return ok || err != nil
}

// The bounds that everything is held to.
const (
	requestBound   = 80 * time.Second // an answer, whatever it is
	stateBound     = 30 * time.Second // what GET says is what the engine says
	leftoversBound = 75 * time.Second // what was deleted is gone, what was done is stored
	tasksBound     = 75 * time.Second // every task has ended
)
