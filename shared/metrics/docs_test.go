package metrics_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/metrics"
	"github.com/agentpod/agentpod/shared/metrics/metricstest"
)

const docs = "../../docs/"

// promtool runs Prometheus' own checker.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	tool, err := exec.LookPath("promtool")
	if err != nil {
		if tool, err = filepath.Abs("../../bin/tools/promtool"); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), tool, args...).CombinedOutput() //nolint:gosec // the test's own
	if err != nil {
		t.Errorf("promtool %s: %v (.ci/tools fetches promtool where it is missing)\n%s", strings.Join(args, " "), err, out)
	}
}

func TestTheRulesAreWhatPrometheusTakes(t *testing.T) {
	t.Parallel()
	promtool(t, "check", "rules", docs+"alerts.yaml")
	promtool(t, "test", "rules", docs+"alerts_test.yaml")
}

func read(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(docs + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

var (
	alert   = regexp.MustCompile(`(?m)^ {6}- alert: (\w+)$`)
	verdict = regexp.MustCompile(`alertname="(\w+)", alertstate="firing"}\)\n\s*eval_time: \w+\n\s*exp_samples: (.)(.)`)
)

// alerts cuts the rules into one text each.
func alerts(t *testing.T) map[string]string {
	t.Helper()
	text := read(t, "alerts.yaml")
	all, at := map[string]string{}, alert.FindAllStringSubmatchIndex(text, -1)
	for i, m := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		all[text[m[2]:m[3]]] = text[m[0]:end]
	}
	return all
}

func TestEveryAlertSaysWhatToDoAndIsTriedBothWays(t *testing.T) {
	t.Parallel()
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, m := range verdict.FindAllStringSubmatch(read(t, "alerts_test.yaml"), -1) {
		if m[3] == "]" {
			quiet[m[1]] = true
		} else {
			fires[m[1]] = true
		}
	}
	all := alerts(t)
	if len(all) < 10 {
		t.Fatalf("only %d alerts were found", len(all))
	}
	for name, text := range all {
		if !fires[name] || !quiet[name] {
			t.Errorf("%s has a test in which it fires: %v, one in which it does not: %v", name, fires[name], quiet[name])
		}
		for _, field := range []string{"severity: ", "summary: ", "description: ", "runbook: "} {
			if !strings.Contains(text, field) {
				t.Errorf("%s has no %s", name, field)
			}
		}
	}
}

// The parts of an expression that hold no name of a figure.
var (
	noNames = regexp.MustCompile(`"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)`)
	names   = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*\b(\s*\()?`)
	numbers = regexp.MustCompile(`\b[0-9.]+(?:e\d+)?\b`)
)

// figuresOf returns the figures that an expression names.
func figuresOf(expr string) []string {
	expr = numbers.ReplaceAllString(noNames.ReplaceAllString(expr, " "), " ")
	var all []string
	for _, name := range names.FindAllString(expr, -1) {
		switch {
		case strings.HasSuffix(name, "("), slices.Contains([]string{"and", "or", "unless", "bool", "offset", "sum", "max", "min", "count", "avg"}, name):
		default:
			all = append(all, name)
		}
	}
	return all
}

func TestNamesAreFoundInAnExpression(t *testing.T) {
	t.Parallel()
	for expr, want := range map[string][]string{
		`sum by (a, b) (rate(x_total{outcome="y_total"}[5m])) > 0.05 * sum without (z) (y_total) and w > 1e9`: {"x_total", "y_total", "w"},
		`absent(up{job="g"}) or up == 0`: {"up", "up"},
	} {
		if got := figuresOf(expr); !slices.Equal(got, want) {
			t.Errorf("%s: %v", expr, got)
		}
	}
}

// exists fails the test unless every figure of an expression is documented, and so,
// as other tests see to it, shown.
func exists(t *testing.T, where, expr string) {
	t.Helper()
	tables := metricstest.Tables(t, docs+"metrics.md")
	m, err := metrics.New()
	if err != nil {
		t.Fatal(err)
	}
	own, err := m.Gather() // Go's and the process's
	if err != nil {
		t.Fatal(err)
	}
	found := figuresOf(expr)
	if len(found) == 0 {
		t.Errorf("%s has no figure in %s", where, expr)
	}
	for _, name := range found {
		_, documented := tables[name]
		for _, part := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(name, part); ok && tables[base].Kind == "histogram" {
				documented = true
			}
		}
		if tables[name].Kind == "histogram" {
			documented = false // there is no series of that name
		}
		for _, family := range own {
			documented = documented || family.GetName() == name && !strings.HasPrefix(name, "agentpod_")
		}
		if !documented && name != "up" { // which Prometheus makes
			t.Errorf("%s names %s, which nothing shows", where, name)
		}
	}
}

var exprOf = regexp.MustCompile(`(?s)\n {8}expr: (.*?)\n {8}(?:for|labels): `)

func TestAlertsNameWhatIsShown(t *testing.T) {
	t.Parallel()
	for name, text := range alerts(t) {
		m := exprOf.FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("%s has no expression", name)
		}
		exists(t, name, strings.TrimPrefix(m[1], "|"))
	}
}

func TestTheDashboardNamesWhatIsShownAndAllOfIt(t *testing.T) {
	t.Parallel()
	var board struct {
		Panels []struct {
			Type, Title string
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "dashboard.json")), &board); err != nil {
		t.Fatal(err)
	}
	var rules strings.Builder
	rules.WriteString("groups:\n- name: dashboard\n  rules:\n")
	named := ""
	for _, p := range board.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s shows nothing", p.Title)
		}
		for i, target := range p.Targets {
			exists(t, p.Title, target.Expr)
			expr, _ := json.Marshal(strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")) // a string cannot fail
			fmt.Fprintf(&rules, "  - {record: 'x%d', labels: {panel: '%d'}, expr: %s}\n", i, rules.Len(), expr)
			named += target.Expr
		}
	}
	for name := range metricstest.Tables(t, docs+"metrics.md") {
		if !strings.Contains(named, name) {
			t.Errorf("no panel shows %s", name)
		}
	}
	path := filepath.Join(t.TempDir(), "panels.yaml")
	if err := os.WriteFile(path, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", path)
}
