package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestAnOpenCodeThatItsHomeKeepsFromGettingReadyIsStartedWithoutIt(t *testing.T) {
	for _, fault := range []string{"exit", "hang"} {
		t.Run(fault, func(t *testing.T) {
			b := newBox(t)
			b.tell(fakeHome, fault)
			request := guest.StartRequest{Password: "pw", Config: config("m"), MayBare: true}
			applied, err := b.Start(t.Context(), request)
			if err != nil || !applied.Bare {
				t.Fatalf("%+v, %v", applied, err)
			}
			if st, err := b.OpenCode(t.Context()); err != nil || !st.Bare || st.State != guest.StateReady {
				t.Errorf("it says %+v, %v", st, err)
			}
			if b.asked("OPENCODE_PURE=1") != 1 || b.asked("OPENCODE_DISABLE_PROJECT_CONFIG=1") != 1 {
				t.Error("it has the plugins and the config of the workspace")
			}
			if b.rendered("opencode.json") == "absent" || b.auth() == "" {
				t.Error("it lacks what it was to be given")
			}
			if err := os.Remove(filepath.Join(b.fake, fakeHome)); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Stop(t.Context(), guest.StopRequest{GraceMs: 1000}); err != nil {
				t.Fatal(err)
			}
			if applied, err = b.Start(t.Context(), request); err != nil || applied.Bare {
				t.Errorf("the next start: %+v, %v", applied, err)
			}
			if st, err := b.OpenCode(t.Context()); err != nil || st.Bare {
				t.Errorf("after it: %+v, %v", st, err)
			}
		})
	}
}

func TestOnlyAStartThatMayBeBareIs(t *testing.T) {
	b := newBox(t)
	b.tell(fakeHome, "exit")
	if _, err := b.Start(t.Context(), guest.StartRequest{Password: "pw"}); !sandbox.HasCode(err, sandbox.CodeBootFailed) {
		t.Errorf("got %v", err)
	}
}

func TestAConfigThatIsRejectedIsNotTriedBare(t *testing.T) {
	b := newBox(t)
	bad := guest.Config{OpenCode: []byte(`{"model":5}`)}
	if _, err := b.Start(t.Context(), guest.StartRequest{Password: "pw", Config: bad, MayBare: true}); !sandbox.HasCode(err, sandbox.CodeConfigRejected) {
		t.Errorf("got %v", err)
	}
	if b.asked("START") != 1 {
		t.Errorf("it was started %d times", b.asked("START"))
	}
}

func TestSharingIsOffAndSoIsTheProjectsConfigIfThatIsAskedFor(t *testing.T) {
	b := newBox(t)
	b.mustStart(config("m"))
	if b.asked("OPENCODE_DISABLE_SHARE=1") != 1 || b.asked("OPENCODE_DISABLE_PROJECT_CONFIG=") != 1 {
		t.Error("a start that asks for nothing")
	}
	workspace := filepath.Join(b.home, "workspace")
	asked := guest.StartRequest{
		Password: "another", Directory: filepath.Join(workspace, "sub"), NoProjectConfig: true,
		Config: guest.Config{OpenCode: []byte(`{"instructions":["mine.md"],"model":"m"}`)},
	}
	if _, err := b.Start(t.Context(), asked); err != nil {
		t.Fatal(err)
	}
	if b.asked("OPENCODE_DISABLE_PROJECT_CONFIG=1") != 1 {
		t.Error("the workspace's config is read")
	}
	want := `{"$schema":"https://opencode.ai/config.json","instructions":["mine.md","` + workspace + `/sub/AGENTS.md","` + workspace + `/AGENTS.md"],"model":"m"}`
	if got := b.rendered("opencode.json"); got != want {
		t.Errorf("rendered %s", got)
	}
	wantWritten(t, b.mustPut(asked.Config))
	b.mustPut(guest.Config{})
	if got := b.rendered("opencode.json"); got != `{"$schema":"https://opencode.ai/config.json","instructions":["`+workspace+`/sub/AGENTS.md","`+workspace+`/AGENTS.md"]}` {
		t.Errorf("after another config: %s", got)
	}
}
