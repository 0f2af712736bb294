package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// benchEnv names the folder for a run's table.md and table.json; `make bench`
// sets it. The gateway is built without the race detector then.
const benchEnv = "AGENTPOD_BENCH_DIR"

// report is what all benchmarks of a run have measured.
//
//nolint:gochecknoglobals // filled by the benchmarks, written by TestMain
var report recorder

// row is one figure beside its baseline, both measured in the same run.
type row struct {
	Name     string    `json:"name"`
	Unit     string    `json:"unit"` // of all samples: s, ms or MB (10^6 bytes)
	Samples  []float64 `json:"samples"`
	Baseline baseline  `json:"baseline"`
	Aim      *aim      `json:"aim,omitempty"` // nil if none was set
	Note     string    `json:"note,omitempty"`
}

// baseline is what a figure is compared with.
type baseline struct {
	Name    string    `json:"name"`
	Samples []float64 `json:"samples"`
}

// aim is the most that a figure is to be.
type aim struct {
	Figure string  `json:"figure"` // p50, max or ratio
	AtMost float64 `json:"atMost"`
}

func (a aim) met(r row) bool {
	switch a.Figure {
	case "p50":
		return percentile(r.Samples, 50) <= a.AtMost
	case "max":
		return slices.Max(r.Samples) <= a.AtMost
	default:
		return r.ratio() <= a.AtMost
	}
}

// ratio is the figure's median to the baseline's.
func (r row) ratio() float64 { return percentile(r.Samples, 50) / percentile(r.Baseline.Samples, 50) }

// percentile is the sample of the nearest rank: of n samples the largest, where n
// is too small for that percentile.
func percentile(samples []float64, p int) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[(len(sorted)*p+99)/100-1]
}

// seconds and milliseconds make samples of durations.
func seconds(all ...time.Duration) []float64 {
	samples := make([]float64, len(all))
	for i, d := range all {
		samples[i] = d.Seconds()
	}
	return samples
}

func milliseconds(all ...time.Duration) []float64 {
	samples := seconds(all...)
	for i := range samples {
		samples[i] *= 1000
	}
	return samples
}

type recorder struct {
	mu   sync.Mutex
	rows []row
	from conditions
}

// conditions are what else the figures depend on.
type conditions struct {
	Began      time.Time `json:"began"`
	Took       string    `json:"took"`
	Machine    string    `json:"machine"`
	LoadBefore string    `json:"loadBefore"` // 1, 5 and 15 minutes
	LoadAfter  string    `json:"loadAfter"`
	Engine     string    `json:"engine"`
	Image      string    `json:"image"`
	Rclone     string    `json:"rclone"`
	Race       bool      `json:"race"` // the gateway was built with the race detector
}

// begin notes how the machine is before anything was measured.
func (r *recorder) begin(race bool) {
	r.from = conditions{Began: time.Now().UTC().Truncate(time.Second), LoadBefore: load(), Race: race}
}

// add takes a row; one without samples fails the benchmark.
func (r *recorder) add(b *testing.B, rows ...row) {
	b.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range rows {
		if len(one.Samples) == 0 || len(one.Baseline.Samples) == 0 {
			b.Fatalf("nothing was measured of %q", one.Name)
		}
		r.rows = append(r.rows, one)
		b.Logf("%s: %.4g %s, %s: %.4g %s", one.Name, percentile(one.Samples, 50), one.Unit,
			one.Baseline.Name, percentile(one.Baseline.Samples, 50), one.Unit)
	}
}

// write prints the table and, with a folder, leaves it there as Markdown and as
// JSON with every sample. Without rows it does nothing: no benchmark ran.
func (r *recorder) write(to io.Writer, folder string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.rows) == 0 {
		return nil
	}
	c := r.from
	c.Took, c.LoadAfter = time.Since(c.Began).Round(time.Second).String(), load()
	c.Machine = fmt.Sprintf("%s/%s, %d processors: %s", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), processor())
	c.Image = os.Getenv(imageEnv)
	engine, err := docker("version", "--format", "Docker {{.Server.Version}}")
	if err != nil {
		return fmt.Errorf("asking for the engine's version: %w", err)
	}
	c.Engine = engine
	if out, err := exec.Command("rclone", "version").Output(); err == nil { //nolint:noctx // prints and ends
		c.Rclone, _, _ = strings.Cut(string(out), "\n")
	}
	table := c.markdown() + "\n" + markdown(r.rows)
	if _, err := io.WriteString(to, "\n"+table); err != nil {
		return fmt.Errorf("printing the table: %w", err)
	}
	if folder == "" {
		return nil
	}
	type figures struct {
		row
		P50   float64 `json:"p50"`
		P95   float64 `json:"p95"`
		P99   float64 `json:"p99"`
		Ratio float64 `json:"ratio"`
		Met   *bool   `json:"met,omitempty"`
	}
	all := make([]figures, 0, len(r.rows))
	for _, one := range r.rows {
		f := figures{one, percentile(one.Samples, 50), percentile(one.Samples, 95), percentile(one.Samples, 99), one.ratio(), nil}
		if one.Aim != nil {
			met := one.Aim.met(one)
			f.Met = &met
		}
		all = append(all, f)
	}
	raw, err := json.MarshalIndent(map[string]any{"conditions": c, "rows": all}, "", " ")
	if err != nil {
		return fmt.Errorf("encoding the figures: %w", err)
	}
	return errors.Join(
		os.WriteFile(filepath.Join(folder, "table.md"), []byte(table), 0o644),
		os.WriteFile(filepath.Join(folder, "table.json"), append(raw, '\n'), 0o644),
	)
}

func (c conditions) markdown() string {
	race := "without"
	if c.Race {
		race = "WITH"
	}
	return fmt.Sprintf("%s, in %s, on %s. Load average %s before, %s after. %s, image %s, %s, gateway built %s the race detector.\n",
		c.Began.Format(time.RFC3339), c.Took, c.Machine, c.LoadBefore, c.LoadAfter, c.Engine, c.Image, c.Rclone, race)
}

func markdown(rows []row) string {
	var table strings.Builder
	table.WriteString("| Figure | n | p50 | p95 | p99 | Baseline | n | p50 | p95 | p99 | Ratio | Aim |\n")
	table.WriteString("|---|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|---|\n")
	for _, r := range rows {
		name := r.Name
		if r.Note != "" {
			name += " (" + r.Note + ")"
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %s | %.3g | %s |\n",
			name, cells(r.Samples, r.Unit), r.Baseline.Name, cells(r.Baseline.Samples, r.Unit), r.ratio(), r.verdict())
	}
	return table.String()
}

// cells are how many samples there are, and what they say.
func cells(samples []float64, unit string) string {
	return fmt.Sprintf("%d | %s %s | %s %s | %s %s", len(samples),
		short(percentile(samples, 50)), unit, short(percentile(samples, 95)), unit, short(percentile(samples, 99)), unit)
}

// short writes a number with three digits, without an exponent.
func short(x float64) string {
	if x == 0 {
		return "0"
	}
	return fmt.Sprintf("%.*f", max(0, 2-int(math.Floor(math.Log10(math.Abs(x))))), x)
}

// verdict says what the aim is and whether it was met.
func (r row) verdict() string {
	if r.Aim == nil {
		return ""
	}
	what, verdict := r.Aim.Figure, "missed"
	unit := " " + r.Unit
	if what == "ratio" {
		unit = ""
	}
	if r.Aim.met(r) {
		verdict = "met"
	}
	return fmt.Sprintf("%s ≤ %s%s: %s", what, short(r.Aim.AtMost), unit, verdict)
}

// load is the machine's load average, or "unknown" where there is no /proc.
func load() string {
	raw, err := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(raw))
	if err != nil || len(fields) < 3 {
		return "unknown"
	}
	return strings.Join(fields[:3], " ")
}

// processor is the name that the first processor has in /proc.
func processor() string {
	raw, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
