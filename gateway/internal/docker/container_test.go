package docker

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestAContainerLivesFromCreateToRemove(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	if err := r.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	created := create(t, r, specOf(r, "One_two-3"))
	if created.State != lifecycle.ContainerCreated || created.SandboxID != "One_two-3" || created.GuestAddr != "" {
		t.Fatalf("created: %+v", created)
	}
	if err := r.Stop(ctx, created.ID, time.Second); err != nil {
		t.Fatalf("stopping what never ran: %v", err)
	}
	c, err := r.Start(ctx, created.ID)
	if err != nil {
		t.Fatal(err)
	}
	if c.State != lifecycle.ContainerRunning || c.StartedAt == "" || c.ID != created.ID {
		t.Fatalf("started: %+v", c)
	}
	if got := ask(t, c, "/name", nil); got != "One_two-3" {
		t.Fatalf("the stub is %q", got)
	}
	found, err := r.Find(ctx, "One_two-3")
	if err != nil || found != c {
		t.Fatalf("found %+v (%v), want %+v", found, err, c)
	}
	if _, err := r.Find(ctx, "one_two-3"); !errors.Is(err, lifecycle.ErrNoContainer) {
		t.Fatalf("ids are case-sensitive, yet: %v", err)
	}
	again, err := r.Start(ctx, c.ID)
	if err != nil || again != c {
		t.Fatalf("starting what runs gave %+v, %v", again, err)
	}

	ask(t, c, "/write", url.Values{"path": {guest.Home + "/kept"}, "text": {"still here"}})
	if err := r.Stop(ctx, c.ID, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.Stop(ctx, c.ID, time.Second); err != nil {
		t.Fatalf("stopping what is stopped: %v", err)
	}
	stopped, err := r.Inspect(ctx, c.ID)
	if err != nil || stopped.State != lifecycle.ContainerExited || stopped.ExitCode != 137 || stopped.GuestAddr != "" {
		t.Fatalf("stopped: %+v, %v", stopped, err)
	}
	second, err := r.Start(ctx, c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if second.Run() == c.Run() {
		t.Fatal("the second run is not told from the first")
	}
	if got := ask(t, second, "/read", url.Values{"path": {guest.Home + "/kept"}}); got != "still here" {
		t.Fatalf("the home holds %q after a restart", got)
	}

	if err := r.Remove(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(ctx, c.ID); err != nil {
		t.Fatalf("removing what is gone: %v", err)
	}
	_, err = r.Inspect(ctx, c.ID)
	wantGone(t, err)
	_, err = r.Start(ctx, c.ID)
	wantGone(t, err)
	wantGone(t, r.Stop(ctx, c.ID, 0))
	wantGone(t, r.Pause(ctx, c.ID))
	wantGone(t, r.Rename(ctx, c.ID, "other"))
	_, err = r.Wait(ctx, c.ID)
	wantGone(t, err)
	_, err = r.Stats(ctx, c.ID)
	wantGone(t, err)
	_, err = r.Logs(ctx, c.ID, lifecycle.LogOptions{})
	wantGone(t, err)
	wantGone(t, r.Alive(ctx, second.Run()))
	_, err = r.Inspect(ctx, "")
	wantGone(t, err)

	volumes, err := r.Volumes(ctx)
	if err != nil || len(volumes) != 1 {
		t.Fatalf("the volume outlives its container, yet: %v, %v", volumes, err)
	}
	for range 2 {
		if err := r.RemoveVolume(ctx, volumes[0]); err != nil {
			t.Fatal(err)
		}
	}
	if volumes, err = r.Volumes(ctx); err != nil || len(volumes) != 0 {
		t.Fatalf("volumes %v, %v", volumes, err)
	}
}

func TestAContainerInTheBackgroundHasTheLeastOfTheProcessorsUntilItIsToTheFore(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	spec := specOf(r, "background")
	spec.Background = true
	c := create(t, r, spec)
	if _, err := r.Start(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	shares := func(want int64) {
		t.Helper()
		if got, err := world.cli.ContainerInspect(ctx, c.ID); err != nil || got.HostConfig.CPUShares != want || !got.State.Running {
			t.Errorf("its shares are %d, want %d, and it is %s (%v)", got.HostConfig.CPUShares, want, got.State.Status, err)
		}
	}
	shares(leastShares)
	if err := r.Foreground(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	shares(usualShares)
	if err := r.Foreground(ctx, strings.Repeat("0", 64)); !errors.Is(err, lifecycle.ErrNoContainer) {
		t.Errorf("of one that is not there: %v", err)
	}
}

func TestTheLimitsHoldInTheContainerAndShowInInspect(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t, func(s *Settings) {
		s.Pids, s.NoFile, s.LogMaxSize, s.LogMaxFiles, s.CPUs = 77, 4321, 123456, 3, 0.5
	})
	c := run(t, r, "limits")
	got, err := world.cli.ContainerInspect(ctx, c.ID)
	if err != nil {
		t.Fatal(err)
	}
	h := got.HostConfig
	for name, ok := range map[string]bool{
		"memory":            h.Memory == 64*mebibyte && h.MemorySwap == h.Memory,
		"cpus":              h.NanoCPUs == 5e8,
		"pids":              h.PidsLimit != nil && *h.PidsLimit == 77,
		"capabilities":      len(h.CapDrop) == 1 && h.CapDrop[0] == "ALL" && len(h.CapAdd) == 0 && !h.Privileged,
		"no new privileges": len(h.SecurityOpt) == 1 && h.SecurityOpt[0] == "no-new-privileges",
		"read-only root":    h.ReadonlyRootfs,
		"log cap":           h.LogConfig.Type == "json-file" && h.LogConfig.Config["max-size"] == "123456" && h.LogConfig.Config["max-file"] == "3",
		"no restart":        h.RestartPolicy.IsNone(),
		"no init":           h.Init != nil && !*h.Init,
		"no bind mounts":    len(h.Binds) == 0 && len(got.Mounts) == 1 && got.Mounts[0].Type == "volume" && got.Mounts[0].Destination == guest.Home,
		"own network":       string(h.NetworkMode) == r.set.Network && len(got.NetworkSettings.Networks) == 1,
		"no published port": len(h.PortBindings) == 0 && !h.PublishAllPorts,
		"label":             got.Config.Labels[Label] == r.set.Installation,
		"stop signal":       got.Config.StopSignal == "SIGKILL",
		"image's user":      got.Config.User == "1000",
	} {
		if !ok {
			t.Errorf("inspect does not show the %s as it must be: %+v", name, h)
		}
	}
	self := ask(t, c, "/self", nil)
	for _, want := range []string{
		"pid=1 uid=1000 host=sandbox nofile=4321/4321\n",
		"CapEff:0000000000000000\n", "CapBnd:0000000000000000\n", "NoNewPrivs:1\n",
		"write /=false\n", "write /home/user=true\n", "write /tmp=true\n", "write /run=true\n",
	} {
		if !strings.Contains(self, want) {
			t.Errorf("the process does not say %q:\n%s", want, self)
		}
	}
	for line := range strings.Lines(self) {
		dir, opts, mount := strings.Cut(strings.TrimPrefix(line, "mount "), "=")
		if !strings.HasPrefix(line, "mount ") || !mount {
			continue
		}
		if !strings.Contains(opts, "nosuid") || !strings.Contains(opts, "nodev") || !strings.Contains(opts, "size=") {
			t.Errorf("%s is mounted %s", dir, opts)
		}
		if exec := !strings.Contains(opts, "noexec"); exec != (dir == "/tmp") {
			t.Errorf("%s is mounted %s", dir, opts)
		}
	}
}

func TestTheEnginesProcessorsBoundTheCPULimit(t *testing.T) {
	r := newRuntime(t, func(s *Settings) { s.CPUs = 4096 })
	run(t, r, "greedy")
}

func TestPublishedPortsAreOnLoopbackOnly(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t, func(s *Settings) { s.Reach = ReachPublished })
	c := run(t, r, "pub")
	for _, addr := range []string{c.GuestAddr, c.OpenCodeAddr} {
		if !strings.HasPrefix(addr, "127.0.0.1:") {
			t.Errorf("the address is %s", addr)
		}
	}
	if c.GuestAddr == c.OpenCodeAddr {
		t.Error("both ports have one address")
	}
	got, err := world.cli.ContainerInspect(ctx, c.ID)
	if err != nil {
		t.Fatal(err)
	}
	for port, bindings := range got.NetworkSettings.Ports {
		for _, b := range bindings {
			if b.HostIP != "127.0.0.1" {
				t.Errorf("port %s is published on %s", port, b.HostIP)
			}
		}
	}
	// A container keeps the way it was created with when the settings change.
	direct, err := New(r.set, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	direct.set.Reach = ReachDirect
	if same, err := direct.Inspect(ctx, c.ID); err != nil || same != c {
		t.Errorf("seen with other settings it is %+v, %v", same, err)
	}
}

func TestPauseAndUnpauseKeepTheRunAndItsAddress(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	c := run(t, r, "nap")
	for range 2 {
		if err := r.Pause(ctx, c.ID); err != nil {
			t.Fatal(err)
		}
	}
	paused, err := r.Inspect(ctx, c.ID)
	if err != nil || paused.State != lifecycle.ContainerPaused || paused.Run() != c.Run() || paused.GuestAddr != c.GuestAddr {
		t.Fatalf("paused: %+v, %v", paused, err)
	}
	if err := r.Alive(ctx, c.Run()); err != nil {
		t.Fatalf("a paused run is alive: %v", err)
	}
	if _, err := r.Stats(ctx, c.ID); err != nil {
		t.Fatalf("stats of a paused container: %v", err)
	}
	for range 2 {
		if err := r.Unpause(ctx, c.ID); err != nil {
			t.Fatal(err)
		}
	}
	if got := ask(t, c, "/name", nil); got != "nap" {
		t.Fatalf("after the unpause answers %q", got)
	}
	if err := r.Pause(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if err := r.Stop(ctx, c.ID, time.Minute); err != nil {
		t.Fatalf("stopping a paused container: %v", err)
	}
	wantCode(t, r.Pause(ctx, c.ID), sandbox.CodeConflict)
	wantCode(t, r.Unpause(ctx, c.ID), sandbox.CodeConflict)
	if _, err := r.Start(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if err := r.Pause(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(ctx, c.ID); err != nil {
		t.Fatalf("removing a paused container: %v", err)
	}
}

func TestStopLeavesTheFirstProcessItsGrace(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	spec := specOf(r, "polite")
	spec.Env["STUB_TERM"] = "7"
	polite, err := r.Start(ctx, create(t, r, spec).ID)
	if err != nil {
		t.Fatal(err)
	}
	ask(t, polite, "/name", nil)
	if err := r.Stop(ctx, polite.ID, deadline/2); err != nil {
		t.Fatal(err)
	}
	if c, err := r.Inspect(ctx, polite.ID); err != nil || c.ExitCode != 7 {
		t.Fatalf("it did not end by itself: %+v, %v", c, err)
	}
	deaf := run(t, r, "deaf") // PID 1 without a handler ignores SIGTERM
	if err := r.Stop(ctx, deaf.ID, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if c, err := r.Inspect(ctx, deaf.ID); err != nil || c.State != lifecycle.ContainerExited {
		t.Fatalf("it was not killed: %+v, %v", c, err)
	}
}

func TestANameBelongsToOneContainer(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	first := create(t, r, specOf(r, "first"))
	spec := specOf(r, "first")
	spec.Volume = r.nameOf("new") + "-home"
	_, err := r.Create(ctx, spec)
	wantCode(t, err, sandbox.CodeNameTaken)
	volumes, err := r.Volumes(ctx)
	if err != nil || len(volumes) != 1 {
		t.Fatalf("the refused create left its volume: %v, %v", volumes, err)
	}

	second := create(t, r, specOf(r, "second"))
	wantCode(t, r.Rename(ctx, second.ID, "first"), sandbox.CodeNameTaken)
	if err := r.Rename(ctx, second.ID, "third"); err != nil {
		t.Fatal(err)
	}
	if err := r.Rename(ctx, second.ID, "third"); err != nil {
		t.Fatalf("renaming to the name that it has: %v", err)
	}
	if c, err := r.Find(ctx, "third"); err != nil || c.ID != second.ID || c.SandboxID != "third" {
		t.Fatalf("found %+v, %v", c, err)
	}
	_, err = r.Find(ctx, "second")
	wantGone(t, err)
	if err := r.Remove(ctx, first.ID); err != nil {
		t.Fatal(err)
	}
	if err := r.Rename(ctx, second.ID, "first"); err != nil {
		t.Fatalf("the name is free again: %v", err)
	}
}

func TestARunningContainerIsFoundUnderItsNewName(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	c := run(t, r, ".pool-1") // no sandbox has such an id
	if err := r.Rename(ctx, c.ID, "claimed"); err != nil {
		t.Fatal(err)
	}
	got, err := r.Find(ctx, "claimed")
	if err != nil || got.Run() != c.Run() || got.GuestAddr != c.GuestAddr || got.Volume != specOf(r, ".pool-1").Volume {
		t.Fatalf("found %+v, %v; want the run of %+v", got, err, c)
	}
	if err := r.CreateVolume(ctx, got.Volume); err != nil {
		t.Errorf("a volume that is there and ours: %v", err)
	}
}

func TestWhatEndsAsItStartsIsBootFailed(t *testing.T) {
	r := newRuntime(t)
	spec := specOf(r, "brief")
	spec.Env["STUB_EXIT"] = "23"
	c := create(t, r, spec)
	// The process may still be alive when start looks; then it is found ended.
	started, err := r.Start(testContext(t), c.ID)
	if err != nil {
		wantCode(t, err, sandbox.CodeBootFailed)
	} else if started.State != lifecycle.ContainerRunning {
		t.Fatalf("no error for %+v", started)
	}
	exit, err := r.Wait(testContext(t), c.ID)
	if err != nil || exit.Code != 23 || exit.OOMKilled {
		t.Fatalf("exit %+v, %v", exit, err)
	}
}

func TestRemovingIsFineForSeveralAtOnce(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	c := run(t, r, "crowd")
	errs := make(chan error)
	const callers = 8
	for range callers {
		go func() { errs <- r.Remove(ctx, c.ID) }()
	}
	for range callers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	_, err := r.Inspect(ctx, c.ID)
	wantGone(t, err)
}

func TestAnAddressTakenByAnotherIsNotTheOldRuns(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	a := run(t, r, "a")
	if err := r.Alive(ctx, a.Run()); err != nil {
		t.Fatal(err)
	}
	if err := r.Stop(ctx, a.ID, 0); err != nil {
		t.Fatal(err)
	}
	wantGone(t, r.Alive(ctx, a.Run()))
	b := run(t, r, "b")
	if b.GuestAddr != a.GuestAddr {
		t.Fatalf("b is at %s, not at a's %s: this test shows nothing", b.GuestAddr, a.GuestAddr)
	}
	wantGone(t, r.Alive(ctx, a.Run()))
	if err := r.Alive(ctx, b.Run()); err != nil {
		t.Fatal(err)
	}
	again, err := r.Start(ctx, a.ID)
	if err != nil {
		t.Fatal(err)
	}
	if again.GuestAddr == b.GuestAddr {
		t.Fatalf("two runs at %s", b.GuestAddr)
	}
	wantGone(t, r.Alive(ctx, a.Run()))
	if err := r.Alive(ctx, again.Run()); err != nil {
		t.Fatal(err)
	}
}

func TestACancelledCallSaysSo(t *testing.T) {
	r := newRuntime(t)
	ctx, cancel := context.WithCancel(testContext(t))
	if _, err := r.List(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := r.List(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func TestAMissingImageAndRuntimeClassAreNamed(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t, func(s *Settings) { s.Image = "agentpod-dockertest:absent" })
	wantCode(t, r.Ready(ctx), sandbox.CodeImageMissing)
	_, err := r.Create(ctx, specOf(r, "x"))
	wantCode(t, err, sandbox.CodeImageMissing)
	if volumes, err := r.Volumes(ctx); err != nil || len(volumes) != 0 {
		t.Fatalf("the failed create left %v, %v", volumes, err)
	}

	r = newRuntime(t, func(s *Settings) { s.Runtime = "nosuch" })
	wantCode(t, r.Ready(ctx), sandbox.CodeEngineAway)
	c, err := r.Create(ctx, specOf(r, "x"))
	if err == nil { // newer engines see it at start
		_, err = r.Start(ctx, c.ID)
	}
	wantCode(t, err, sandbox.CodeEngineAway)
}

func TestWhatIsNotTheInstallationsIsLeftAlone(t *testing.T) {
	ctx := testContext(t)
	mine, other := newRuntime(t), newRuntime(t)
	theirs := run(t, other, "same")
	list, err := mine.List(ctx)
	if err != nil || len(list) != 0 {
		t.Fatalf("mine lists %v, %v", list, err)
	}
	_, err = mine.Inspect(ctx, theirs.ID)
	wantGone(t, err)
	_, err = mine.Find(ctx, "same")
	wantGone(t, err)
	wantGone(t, mine.Remove(ctx, theirs.ID))
	wantGone(t, mine.Stop(ctx, theirs.ID, 0))
	wantGone(t, mine.Pause(ctx, theirs.ID))
	wantGone(t, mine.Rename(ctx, theirs.ID, "stolen"))
	_, err = mine.Start(ctx, theirs.ID)
	wantGone(t, err)
	wantGone(t, mine.RemoveVolume(ctx, specOf(other, "same").Volume))
	ours := run(t, mine, "same")
	spec := specOf(mine, "thief")
	spec.Volume = specOf(other, "same").Volume
	_, err = mine.Create(ctx, spec)
	wantCode(t, err, sandbox.CodeNameTaken)
	if err := other.Alive(ctx, theirs.Run()); err != nil {
		t.Fatal(err)
	}

	// The label alone is not enough: a container of another name is not a sandbox.
	stray, err := world.cli.ContainerCreate(ctx, &container.Config{Image: world.image, Labels: mine.labels()}, nil, nil, nil, "stray-"+mine.set.Installation)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.cli.ContainerRemove(context.WithoutCancel(ctx), stray.ID, container.RemoveOptions{}); err != nil {
			t.Error(err)
		}
	})
	wantGone(t, mine.Remove(ctx, stray.ID))
	list, err = mine.List(ctx)
	if err != nil || len(list) != 1 || list[0].ID != ours.ID || list[0].State != lifecycle.ContainerRunning || list[0].SandboxID != "same" {
		t.Fatalf("mine lists %v, %v", list, err)
	}
}

func TestIdsAsLongAsTheContractAllows(t *testing.T) {
	r := newRuntime(t, func(s *Settings) { s.Installation += strings.Repeat("x", 32-len(s.Installation)) })
	id := strings.Repeat("A1_-", 15) + "abc" // 63
	if err := sandbox.CheckID(id); err != nil {
		t.Fatal(err)
	}
	run(t, r, id)
	if c, err := r.Find(testContext(t), id); err != nil || c.SandboxID != id {
		t.Fatalf("found %+v, %v", c, err)
	}
}
