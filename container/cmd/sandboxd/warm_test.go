package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func (b *box) startWarm() (guest.Applied, error) {
	return b.Start(b.t.Context(), guest.StartRequest{Password: "pw", Config: config("m"), Warm: true})
}

func TestAWarmStartLeavesTheConfigAskedForAndNothingOfItsOwn(t *testing.T) {
	b := newBox(t)
	if _, err := b.startWarm(); err != nil {
		t.Fatal(err)
	}
	if got := b.rendered("opencode.json"); got != rendering("m") {
		t.Errorf("the config is %s", got)
	}
	if made, removed := b.asked("POST /session"), b.asked("DELETE /session/ses_fake"); made == 0 || made != removed {
		t.Errorf("%d sessions were made and %d removed", made, removed)
	}
	for _, folder := range []string{b.conf + "-warm-up", filepath.Join(b.home, "workspace")} {
		if left, _ := os.ReadDir(folder); len(left) > 0 {
			t.Errorf("%s has %v", folder, left)
		}
	}
	disposes := b.asked("POST /global/dispose")
	again, err := b.Start(t.Context(), guest.StartRequest{Password: "pw", Config: config("m")})
	if err != nil || len(again.Written) > 0 {
		t.Errorf("the same config again: %+v, %v", again, err)
	}
	if b.asked("POST /global/dispose") != disposes {
		t.Error("the same config again made OpenCode forget what it had read")
	}
}

func TestAReloadThatIsAskedForHappensOnceAndIsReadAhead(t *testing.T) {
	b := newBox(t)
	if _, err := b.startWarm(); err != nil {
		t.Fatal(err)
	}
	disposes, read := b.asked("POST /global/dispose"), b.asked("GET /agent")
	if _, err := b.Start(t.Context(), guest.StartRequest{Password: "pw", Config: config("m"), Reload: true}); err != nil {
		t.Fatal(err)
	}
	if b.asked("POST /global/dispose") != disposes+1 {
		t.Error("there was no reload")
	}
	b.eventually("the config is read ahead", func() bool { return b.asked("GET /agent") > read })
}

func TestAWarmStartWhoseTurnReachesNoModelFails(t *testing.T) {
	b := newBox(t)
	b.tell(fakeDeaf, "")
	_, err := b.startWarm()
	if !sandbox.HasCode(err, sandbox.CodeOpenCodeDown) || !strings.Contains(err.Error(), "warm") {
		t.Errorf("error = %v", err)
	}
	if s, err := b.Status(t.Context()); err != nil || s.OpenCode.State != guest.StateStopped {
		t.Errorf("status %+v, %v", s.OpenCode, err)
	}
	b.mustStart(config("m"))
}
