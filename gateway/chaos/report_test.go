package chaos

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what a run came to, as it is written to report.json.
type report struct {
	Commit  string   `json:"commit"`
	Seed    uint64   `json:"seed"`
	Kinds   string   `json:"kinds,omitempty"`
	Seconds float64  `json:"seconds"`
	Points  []*point `json:"points"`
}

// folder is where a run's report and logs are.
func reportFolder() (string, error) {
	dir := run.reports
	if dir == "" {
		dir = filepath.Join("..", "..", ".cache", "chaos")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the report's folder: %w", err)
	}
	return dir, nil
}

// commit names the tree that was tried.
func commit(ctx context.Context) string {
	name, err := command(ctx, "", nil, "git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*")
	if err != nil {
		return "unknown"
	}
	return name
}

// keepLogs writes what gateway and API logged during a point, and returns where.
func keepLogs(folder string) func(l *lane, p *point, gatewayLog, apiLog string) string {
	return func(_ *lane, p *point, gatewayLog, apiLog string) string {
		name := filepath.Join(folder, fmt.Sprintf("%s-%d", p.Kind, p.Seed))
		for suffix, text := range map[string]string{"-gateway.log": gatewayLog, "-api.log": apiLog} {
			if err := os.WriteFile(name+suffix, []byte(text), 0o600); err != nil {
				return err.Error()
			}
		}
		return name + "-*.log"
	}
}

// write writes the report as JSON into a folder, and as a table.
func (r *report) write(folder string, to io.Writer) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, "report.json"), raw, 0o600)
	}
	if err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	type row struct {
		points, bad, missed int
		seconds             float64
		numbers             map[int]int
	}
	rows := map[string]*row{}
	total := row{numbers: map[int]int{}}
	for _, p := range r.Points {
		if p.Seconds == 0 {
			continue // the run ended before it
		}
		name := p.Kind
		if p.Genuine {
			name += ", real"
		}
		one := rows[name]
		if one == nil {
			one = &row{numbers: map[int]int{}}
			rows[name] = one
		}
		for _, to := range []*row{one, &total} {
			to.points++
			to.seconds += p.Seconds
			if p.Missed {
				to.missed++
			}
			if len(p.Violations) > 0 {
				to.bad++
			}
			for _, v := range p.Violations {
				to.numbers[v.Number]++
			}
		}
	}
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(table, "commit %s, seed %d, %s\n", r.Commit, r.Seed, time.Duration(r.Seconds)*time.Second)
	_, _ = fmt.Fprintf(table, "kind\tpoints\tmissed\tviolated\tby number\tseconds each\n")
	line := func(name string, one *row) {
		var numbers []string
		for _, n := range slices.SortedFunc(maps.Keys(one.numbers), cmp.Compare[int]) {
			numbers = append(numbers, fmt.Sprintf("%d: %d", n, one.numbers[n]))
		}
		_, _ = fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%s\t%.1f\n", name, one.points, one.missed, one.bad, strings.Join(numbers, ", "), one.seconds/float64(max(one.points, 1)))
	}
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		line(name, rows[name])
	}
	line("all", &total)
	return table.Flush()
}
