package chaos

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// row is a kind's row in docs/reliability.md.
func (k *kind) row() string {
	var notes []string
	if k.number != 0 {
		notes = append(notes, fmt.Sprint("fault ", k.number))
	}
	if k.shared {
		notes = append(notes, "hits all gateways")
	}
	if k.interrupts {
		notes = append(notes, "may end a turn")
	}
	if k.genuine {
		notes = append(notes, "real OpenCode only")
	}
	if k.slowly {
		notes = append(notes, "⏱")
	}
	return fmt.Sprintf("| %#q | %s | %s | %s |", k.name, k.does, k.heals, strings.Join(notes, ", "))
}

func TestTheDocsHaveEveryKind(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", "docs", "reliability.md"))
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, k := range kinds() {
		want = append(want, k.row())
	}
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); slices.Contains(want, line) || strings.HasPrefix(line, "| `") && strings.Count(line, "|") == 5 {
			got = append(got, line)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the table of kinds in docs/reliability.md (-want +got):\n%s", diff)
	}
}

func TestNoTwoKindsHaveOneName(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range kinds() {
		if seen[k.name] {
			t.Errorf("two kinds are called %s", k.name)
		}
		seen[k.name] = true
	}
}

func TestASeedPlansTheSamePointsAgain(t *testing.T) {
	names := func(seed uint64) (list []string) {
		for _, p := range plan(seed, kinds(), 200, false) {
			list = append(list, fmt.Sprint(p.Kind, p.Seed))
		}
		return list
	}
	if diff := cmp.Diff(names(7), names(7)); diff != "" {
		t.Error(diff)
	}
	if cmp.Equal(names(7), names(8)) {
		t.Error("two seeds plan the same")
	}
}

func TestTheFirstPointHasTheRunsOwnSeed(t *testing.T) {
	chosen, err := choose(kinds(), "engine-killed", false, false)
	if err != nil {
		t.Fatal(err)
	}
	points := plan(99, chosen, 1, false)
	if points[0].Seed != 99 || points[0].Kind != "engine-killed" {
		t.Errorf("the point is %+v", points[0])
	}
}

func TestAWriteWithoutAnAnswerMayBeThereOrNot(t *testing.T) {
	a := newLedger().open("x")
	a.wrote("f", []byte("one"), true)
	a.wrote("f", []byte("two"), false)
	for content, want := range map[string]bool{hash([]byte("one")): true, hash([]byte("two")): true, hash([]byte("three")): false, "": false} {
		if got := a.files["f"].allows(content); got != want {
			t.Errorf("it may be %q: %t", content, got)
		}
	}
	a.wrote("f", []byte("three"), true)
	if a.files["f"].allows(hash([]byte("one"))) {
		t.Error("a write that was acknowledged is followed by the one before it")
	}
	a.wrote("never", []byte("one"), false)
	if !a.files["never"].allows("") {
		t.Error("a file must be there that nobody has acknowledged")
	}
}

// webhooks are events of a sandbox at these seconds, in the order of their coming.
func webhooks(t *testing.T, seconds ...int) *events {
	t.Helper()
	e := &events{}
	for _, at := range seconds {
		e.take(nil, fmt.Appendf(nil, `{"event":"e%d","data":{"sandboxId":"x"},"timestamp":%q}`, at, time.Unix(int64(at), 0).UTC().Format(time.RFC3339)), http.StatusOK)
	}
	return e
}

func TestAWebhookThatOvertookAnotherIsTold(t *testing.T) {
	if _, _, found := webhooks(t, 1, 2, 2, 3, 1).overtaken(); found {
		t.Error("a repeat overtook nothing")
	}
	late, early, found := webhooks(t, 1, 3, 2).overtaken()
	if !found || late.Event != "e2" || early.Event != "e3" {
		t.Errorf("%t: %s came after %s", found, late.Event, early.Event)
	}
}

func TestATaskMayFailOnlyOfWhatEndsItsAgent(t *testing.T) {
	failures := map[string]bool{"the agent was interrupted": true, "OpenCode answered 404": false}
	for text, want := range failures {
		if got := (&oracle{kind: &kind{interrupts: true}}).mayFail("opencode_failed", text); got != want {
			t.Errorf("after a fault that ends agents %q may be: %t", text, got)
		}
		if (&oracle{kind: &kind{}}).mayFail("opencode_failed", text) {
			t.Errorf("after another fault %q may be", text)
		}
	}
}

func TestTheOracleForgetsWhatItFoundUnsure(t *testing.T) {
	a := newLedger().open("x")
	a.wrote("kept", []byte("one"), true)
	a.wrote("unsure", []byte("two"), false)
	o := &oracle{kind: &kind{}}
	o.files(a, hash([]byte("one"))+"  ./kept\n")
	if len(o.found) > 0 {
		t.Errorf("it found %v", o.found)
	}
	o.files(a, hash([]byte("one"))+"  ./kept\n"+hash([]byte("two"))+"  ./unsure\n")
	want := []violation{{0, "something deleted is back"}}
	if diff := cmp.Diff(want, o.found, cmpopts.IgnoreFields(violation{}, "What")); diff != "" {
		t.Errorf("a write that came late (-want +got):\n%s", diff)
	}
}
