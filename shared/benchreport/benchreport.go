// Package benchreport collects what the benchmarks of a run measured, each figure
// beside its baseline, and writes it as a table and with every sample.
package benchreport

import (
	"context"
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

// The environment of a run.
const (
	// DirEnv names the folder for its tables; .ci/bench sets it. Programs are
	// built without the race detector then.
	DirEnv = "AGENTPOD_BENCH_DIR"
	// FullEnv, if it is set, makes a run that measures also what takes longest;
	// `make bench-full` sets it.
	FullEnv = "AGENTPOD_BENCH_FULL"
	// OnceEnv, if it is set, measures everything once, to see that it works.
	OnceEnv = "AGENTPOD_BENCH_ONCE"
	// ProfileEnv names a folder for profiles of the gateway while its hot paths are
	// measured. It is built for that, so the figures are not quite the product's.
	ProfileEnv = "AGENTPOD_BENCH_PROFILE"
)

// Few is how many times something is measured, n times unless the environment says
// otherwise.
func Few(n int) int {
	if os.Getenv(OnceEnv) != "" { //nolint:forbidigo // only benchmarks ask
		return 1
	}
	return n
}

// Full says whether everything is to be measured.
func Full() bool { return os.Getenv(FullEnv) != "" } //nolint:forbidigo // only benchmarks ask

// Row is one figure beside its baseline, both measured in the same run.
type Row struct {
	Name     string    `json:"name"`
	Unit     string    `json:"unit"` // of all samples: s, ms, MB (10^6 bytes), req/s, MB/s
	Samples  []float64 `json:"samples"`
	Baseline Baseline  `json:"baseline"`
	Aim      *Aim      `json:"aim,omitempty"` // nil if none was set
	Note     string    `json:"note,omitempty"`
}

// Baseline is what a figure is compared with.
type Baseline struct {
	Name    string    `json:"name"`
	Samples []float64 `json:"samples"`
}

// Against makes a baseline.
func Against(name string, samples []float64) Baseline { return Baseline{name, samples} }

// Aim is the most, or the least, that a figure is to be.
type Aim struct {
	// Figure is p50, p95, max, ratio, or what a percentile has more than the baseline's:
	// added p50, added p99, or added for both.
	Figure string  `json:"figure"`
	Bound  float64 `json:"bound"`
	Least  bool    `json:"least,omitempty"` // the figure is to be the bound or more
	And    *Aim    `json:"and,omitempty"`   // another aim of the same row
}

// AtMost makes an aim.
func AtMost(figure string, most float64) *Aim { return &Aim{Figure: figure, Bound: most} }

// AtLeast makes an aim that more is better for.
func AtLeast(figure string, least float64) *Aim {
	return &Aim{Figure: figure, Bound: least, Least: true}
}

// Both makes one aim of two.
func Both(one, other *Aim) *Aim {
	both := *one
	both.And = other
	return &both
}

// alone says whether the aim is met, whatever the other one is.
func (a Aim) alone(r Row) bool {
	var is float64
	switch a.Figure {
	case "p50":
		is = Percentile(r.Samples, 50)
	case "p95":
		is = Percentile(r.Samples, 95)
	case "added":
		is = max(r.added(50), r.added(99))
	case "added p50":
		is = r.added(50)
	case "added p99":
		is = r.added(99)
	case "max":
		is = slices.Max(r.Samples)
	default:
		is = r.ratio()
	}
	if a.Least {
		return is >= a.Bound
	}
	return is <= a.Bound
}

func (a Aim) met(r Row) bool { return a.alone(r) && (a.And == nil || a.And.met(r)) }

// ratio is the figure's median to the baseline's.
func (r Row) ratio() float64 { return Percentile(r.Samples, 50) / Percentile(r.Baseline.Samples, 50) }

// added is how much more a percentile is than the baseline's.
func (r Row) added(p int) float64 {
	return Percentile(r.Samples, p) - Percentile(r.Baseline.Samples, p)
}

// Percentile is the sample of the nearest rank: of n samples the largest, where n
// is too small for that percentile.
func Percentile(samples []float64, p int) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[(len(sorted)*p+99)/100-1]
}

// Seconds makes samples of durations.
func Seconds(all ...time.Duration) []float64 {
	samples := make([]float64, len(all))
	for i, d := range all {
		samples[i] = d.Seconds()
	}
	return samples
}

// Milliseconds does so too.
func Milliseconds(all ...time.Duration) []float64 {
	samples := Seconds(all...)
	for i := range samples {
		samples[i] *= 1000
	}
	return samples
}

// Report is what all benchmarks of a run have measured. The zero value is ready
// for Begin. It is safe for concurrent use.
type Report struct {
	mu   sync.Mutex
	rows []Row
	from conditions
}

// conditions are what else the figures depend on.
type conditions struct {
	Program    string    `json:"program"`
	Began      time.Time `json:"began"`
	Took       string    `json:"took"`
	Machine    string    `json:"machine"`
	LoadBefore string    `json:"loadBefore"` // 1, 5 and 15 minutes
	LoadAfter  string    `json:"loadAfter"`
	Engine     string    `json:"engine"`
	Image      string    `json:"image"`
	With       []string  `json:"with"`
	Race       bool      `json:"race"` // the program was built with the race detector
}

// Begin notes how the machine is before anything was measured, of which program,
// in which sandbox image.
func (r *Report) Begin(program, image string, race bool) {
	r.from = conditions{Began: time.Now().UTC().Truncate(time.Second), LoadBefore: load(), Program: program, Image: image, Race: race}
}

// With notes what else there is, such as a server and its version.
func (r *Report) With(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.from.With, what) {
		r.from.With = append(r.from.With, what)
	}
}

// Add takes rows; one without samples fails the benchmark.
func (r *Report) Add(b *testing.B, rows ...Row) {
	b.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range rows {
		if len(one.Samples) == 0 || len(one.Baseline.Samples) == 0 {
			b.Fatalf("nothing was measured of %q", one.Name)
		}
		r.rows = append(r.rows, one)
		b.Logf("%s: %.4g %s, %s: %.4g %s", one.Name, Percentile(one.Samples, 50), one.Unit,
			one.Baseline.Name, Percentile(one.Baseline.Samples, 50), one.Unit)
	}
}

// engineTime bounds the question for the engine's version.
const engineTime = time.Minute

// Write prints the table and, with a folder, leaves it there as PROGRAM.md and,
// with every sample, as PROGRAM.json. Without rows it does nothing: no benchmark ran.
func (r *Report) Write(to io.Writer, folder string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.rows) == 0 {
		return nil
	}
	c := r.from
	c.Took, c.LoadAfter = time.Since(c.Began).Round(time.Second).String(), load()
	c.Machine = fmt.Sprintf("%s/%s, %d processors: %s", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), processor())
	ctx, cancel := context.WithTimeout(context.Background(), engineTime)
	defer cancel()
	engine, err := exec.CommandContext(ctx, "docker", "version", "--format", "Docker {{.Server.Version}}").Output()
	if err != nil {
		return fmt.Errorf("asking for the engine's version: %w", err)
	}
	c.Engine = strings.TrimSpace(string(engine))
	table := c.markdown() + "\n" + markdown(r.rows)
	if _, err := io.WriteString(to, "\n"+table); err != nil {
		return fmt.Errorf("printing the table: %w", err)
	}
	if folder == "" {
		return nil
	}
	type figures struct {
		Row
		P50   float64 `json:"p50"`
		P95   float64 `json:"p95"`
		P99   float64 `json:"p99"`
		Ratio float64 `json:"ratio"`
		Met   *bool   `json:"met,omitempty"`
	}
	all := make([]figures, 0, len(r.rows))
	for _, one := range r.rows {
		f := figures{one, Percentile(one.Samples, 50), Percentile(one.Samples, 95), Percentile(one.Samples, 99), one.ratio(), nil}
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
		os.WriteFile(filepath.Join(folder, c.Program+".md"), []byte(table), 0o600),
		os.WriteFile(filepath.Join(folder, c.Program+".json"), append(raw, '\n'), 0o600),
	)
}

func (c conditions) markdown() string {
	race := "without"
	if c.Race {
		race = "WITH"
	}
	with := strings.Join(append([]string{c.Engine, "image " + c.Image}, c.With...), ", ")
	return fmt.Sprintf("%s, in %s, on %s. Load average %s before, %s after. %s, %s built %s the race detector.\n",
		c.Began.Format(time.RFC3339), c.Took, c.Machine, c.LoadBefore, c.LoadAfter, with, c.Program, race)
}

func markdown(rows []Row) string {
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
		short(Percentile(samples, 50)), unit, short(Percentile(samples, 95)), unit, short(Percentile(samples, 99)), unit)
}

// short writes a number with three digits, without an exponent.
func short(x float64) string {
	if x == 0 {
		return "0"
	}
	return fmt.Sprintf("%.*f", max(0, 2-int(math.Floor(math.Log10(math.Abs(x))))), x)
}

// verdict says what the aims are and whether they were met.
func (r Row) verdict() string {
	var all []string
	for aim := r.Aim; aim != nil; aim = aim.And {
		all = append(all, aim.verdict(r))
	}
	return strings.Join(all, "; ")
}

func (a Aim) verdict(r Row) string {
	sign, verdict, unit := "≤", "missed", " "+r.Unit
	if a.Least {
		sign = "≥"
	}
	if a.Figure == "ratio" {
		unit = ""
	}
	if a.alone(r) {
		verdict = "met"
	}
	switch a.Figure {
	case "added":
		verdict += fmt.Sprintf(" (p50 %s, p99 %s)", short(r.added(50)), short(r.added(99)))
	case "added p50":
		verdict += fmt.Sprintf(" (%s)", short(r.added(50)))
	case "added p99":
		verdict += fmt.Sprintf(" (%s)", short(r.added(99)))
	}
	return fmt.Sprintf("%s %s %s%s: %s", a.Figure, sign, short(a.Bound), unit, verdict)
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
