// Package doctor finds out whether what a program needs is there, and says for
// each thing that is not what to do. It changes nothing by itself; its checks are
// the program's own.
package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// The marks of a line.
const (
	good = "✔"
	odd  = "!"
	bad  = "✗"
)

// maxText bounds what a check says, in bytes: it may hold another program's words.
const maxText = 2000

// Check looks at one thing.
type Check struct {
	// Name is what is looked at, in a word or three. It is unique.
	Name string
	// Needs are names of checks before this one; if one of them fails, this one is
	// not done. Checks that need nothing of each other run at the same time.
	Needs []string
	// Do looks. The detail says what was found. The text of an error says what is
	// wrong and what to do; a *sandbox.Error's is its message and its cause. One that
	// is a WarningError is nothing that the program could not run with.
	Do func(ctx context.Context) (detail string, err error)
}

// WarningError is what Check.Do returns for a set-up that works and is dangerous.
type WarningError string

// Error implements error.
func (w WarningError) Error() string { return string(w) }

// Result is how a check went.
type Result struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Skipped bool   `json:"skipped,omitempty"` // one that it needs had failed
	Warning bool   `json:"warning,omitempty"` // it is well, and the detail says what is dangerous
	// Detail is what was found, or why it was skipped.
	Detail string `json:"detail"`
	// Fix says what is wrong and what to do; empty if nothing is.
	Fix string `json:"fix"`
}

// Report is how all checks went, in their order.
type Report struct {
	OK     bool     `json:"ok"`
	Checks []Result `json:"checks"`
}

// Failed is the report of one thing that is wrong, in as many results of that
// name as the error has lines, and of checks that are not done because of it.
func Failed(name string, err error, rest ...Check) Report {
	var r Report
	for line := range strings.SplitSeq(text(err), "\n") {
		r.Checks = append(r.Checks, Result{Name: name, Fix: printable.Line(line, maxText)})
	}
	for _, c := range rest {
		r.Checks = append(r.Checks, skipped(c.Name, name))
	}
	return r
}

// Run does the checks, each within limit.
func Run(ctx context.Context, limit time.Duration, checks []Check) Report {
	results := make([]Result, len(checks))
	done := make(map[string]chan struct{}, len(checks))
	index := make(map[string]int, len(checks))
	for i, c := range checks {
		done[c.Name], index[c.Name] = make(chan struct{}), i
	}
	for i, c := range checks {
		go func() {
			defer close(done[c.Name])
			for _, need := range c.Needs {
				before := index[need]
				<-done[need]
				if !results[before].OK {
					results[i] = skipped(c.Name, need)
					return
				}
			}
			results[i] = c.run(ctx, limit)
		}()
	}
	for _, c := range checks {
		<-done[c.Name]
	}
	failed := slices.ContainsFunc(results, func(r Result) bool { return !r.OK })
	return Report{OK: !failed, Checks: results}
}

func skipped(name, need string) Result {
	return Result{Name: name, Skipped: true, Detail: fmt.Sprintf("not checked, as %q failed", need)}
}

// run does one check. One that does not heed its context, as a call to a file
// system that hangs does not, is left behind: the process is about to end.
func (c Check) run(ctx context.Context, limit time.Duration) Result {
	const late = time.Second // for a check to say itself what took so long
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	said := make(chan Result, 1)
	go func() {
		detail, err := c.Do(ctx)
		if warning, ok := errors.AsType[WarningError](err); ok {
			said <- Result{Name: c.Name, OK: true, Warning: true, Detail: printable.Line(string(warning), maxText)}
			return
		}
		if err != nil {
			said <- Result{Name: c.Name, Fix: printable.Line(text(err), maxText)}
			return
		}
		said <- Result{Name: c.Name, OK: true, Detail: printable.Line(detail, maxText)}
	}()
	timer := time.NewTimer(limit + late)
	defer timer.Stop()
	select {
	case r := <-said:
		return r
	case <-timer.C:
		return Result{Name: c.Name, Fix: fmt.Sprintf("nothing came of it within %s; look at what it waits for, and try again", limit)}
	}
}

// text is what an error says to an operator.
func text(err error) string {
	e, ok := err.(*sandbox.Error) //nolint:errorlint // the outermost: what wraps one says more
	if !ok {
		return err.Error()
	}
	said := e.Message
	if e.Cause != nil && !strings.Contains(said, e.Cause.Error()) {
		said += " (" + e.Cause.Error() + ")"
	}
	return said
}

// Print writes a line for each result, or all of them as one JSON object.
func (r Report) Print(w io.Writer, asJSON bool) error {
	if asJSON {
		encoder := json.NewEncoder(w)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(r); err != nil {
			return fmt.Errorf("printing the report: %w", err)
		}
		return nil
	}
	var lines strings.Builder
	for _, c := range r.Checks {
		mark, said := good, c.Detail
		switch {
		case c.Skipped:
			mark = bad
		case !c.OK:
			mark, said = bad, c.Fix
		case c.Warning:
			mark = odd
		}
		fmt.Fprintf(&lines, "%s %s: %s\n", mark, c.Name, said)
	}
	if _, err := io.WriteString(w, lines.String()); err != nil {
		return fmt.Errorf("printing the report: %w", err)
	}
	return nil
}
