package lifecycle

import (
	"slices"
	"testing"

	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestGitsProgressIsAPercentageAndTheRestIsSaid(t *testing.T) {
	var told []int
	c := cloning{tell: func(percent int) { told = append(told, percent) }}
	var said []byte
	for _, piece := range []string{
		"Cloning into '.'...\nremote: Counting objects: 100% (4/4)\rReceiving obj",
		"ects:  50% (2/4)\rReceiving objects: 100% (4/4), done.\nResolving deltas: 100% (1/1)\nUpdating fi",
		"les: 100% (9/9), done.\nfatal: the end",
	} {
		said = append(said, c.read([]byte(piece))...)
	}
	said = append(said, c.line()...)
	if want := []int{45, 90, 95, 100}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
	if want := "Cloning into '.'...\nremote: Counting objects: 100% (4/4)\rfatal: the end"; string(said) != want {
		t.Errorf("said %q, want %q", said, want)
	}
}

func TestALineWithoutAnEndIsNotKept(t *testing.T) {
	c := cloning{tell: func(int) { t.Error("it is no progress") }}
	said := 0
	for range 100 {
		said += len(c.read(make([]byte, 1<<10)))
	}
	if len(c.rest) >= maxGitLine || said+len(c.rest) != 100<<10 {
		t.Errorf("%d bytes are kept, %d were said", len(c.rest), said)
	}
}

func TestASandboxSaysWhichStepsItIsAt(t *testing.T) {
	b := &box{state: stateCreating}
	booted := b.during(t.Context(), sandbox.StepOpenCode)
	tell, cloned := b.begin(t.Context(), sandbox.StepClone)
	tell(250)
	info, _ := b.info()
	if len(info.Progress) != 2 || info.Progress[0].Step != sandbox.StepOpenCode || info.Progress[0].Percent != nil ||
		info.Progress[1].Step != sandbox.StepClone || *info.Progress[1].Percent != 100 {
		t.Errorf("at %+v", info.Progress)
	}
	booted()
	cloned()
	if info, _ := b.info(); len(info.Progress) != 0 {
		t.Errorf("still at %+v", info.Progress)
	}
}
