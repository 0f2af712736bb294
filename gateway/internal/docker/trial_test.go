package docker

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/volume"
)

func TestAnEngineSaysWhatItIsAndWhatItLacks(t *testing.T) {
	facts, err := newRuntime(t).Facts(testContext(t))
	if err != nil || facts.Version == "" || facts.API == "" || facts.CPUs < 1 {
		t.Errorf("%+v, %v", facts, err)
	}
	if at, err := time.Parse(time.RFC3339Nano, facts.Time); err != nil || time.Since(at).Abs() > time.Minute {
		t.Errorf("its time is %q, %v", facts.Time, err)
	}
	facts, err = serveFake(t, &fakeEngine{api: "1.41", replies: map[string]reply{
		"GET /info": {status: http.StatusOK, text: `{"MemoryLimit":true,"CpuCfsPeriod":true,"CpuCfsQuota":true}`},
	}}).Facts(testContext(t))
	if err != nil || !slices.Equal(facts.Lacks, []string{"swap", "processes"}) {
		t.Errorf("%+v, %v", facts, err)
	}
}

func TestATrialIsLikeASandboxAndNothingIsLeftOfIt(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	trial := r.NewTrial()
	closed := false
	defer func() {
		if !closed {
			_ = trial.Close(context.WithoutCancel(ctx))
		}
	}()
	host, _, err := trial.Network(ctx)
	if err != nil || host == "" {
		t.Fatalf("%q, %v", host, err)
	}
	c, _, err := trial.Start(ctx, map[string]string{"STUB_NAME": "trial"})
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, c, "/name", nil); got != "trial" {
		t.Errorf("there answers %q", got)
	}
	// The limits are a sandbox's, and a gateway of the installation does not see it.
	mine, err := world.cli.ContainerInspect(ctx, c.ID)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := world.cli.ContainerInspect(ctx, create(t, r, specOf(r, "sandbox")).ID)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := mine.HostConfig.Resources, theirs.HostConfig.Resources; a.Memory != b.Memory || a.MemorySwap != b.MemorySwap || a.NanoCPUs != b.NanoCPUs || *a.PidsLimit != *b.PidsLimit {
		t.Errorf("%+v instead of %+v", a, b)
	}
	list, err := r.List(ctx)
	if err != nil || len(list) != 1 || list[0].SandboxID != "sandbox" {
		t.Errorf("%+v, %v", list, err)
	}
	if err := r.Remove(ctx, theirs.ID); err != nil {
		t.Error(err)
	}
	if err := trial.Close(ctx); err != nil {
		t.Error(err)
	}
	closed = true
	ours := filters.NewArgs(filters.Arg("label", Label+"="+r.set.Installation+trialSuffix))
	containers, err := world.cli.ContainerList(ctx, container.ListOptions{All: true, Filters: ours})
	if err != nil || len(containers) != 0 {
		t.Errorf("%+v, %v", containers, err)
	}
	volumes, err := world.cli.VolumeList(ctx, volume.ListOptions{Filters: ours})
	if err != nil || len(volumes.Volumes) != 0 {
		t.Errorf("%+v, %v", volumes.Volumes, err)
	}
	e, err := r.connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := r.findNetworks(ctx, e); err != nil || len(found) != 0 {
		t.Errorf("networks: %+v, %v", found, err)
	}
}

func TestATrialKeepsANetworkThatWasThere(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	if _, err := r.EnsureNetwork(ctx); err != nil {
		t.Fatal(err)
	}
	trial := r.NewTrial()
	if _, _, err := trial.Network(ctx); err != nil {
		t.Fatal(err)
	}
	_, _, _ = trial.Start(ctx, map[string]string{"STUB_EXIT": "3"}) // it may end a moment later
	if err := trial.Close(ctx); err != nil {
		t.Error(err)
	}
	e, err := r.connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := r.findNetworks(ctx, e); err != nil || len(found) != 1 {
		t.Errorf("networks: %+v, %v", found, err)
	}
}
