package docker

import (
	"net"
	"net/url"
	"strings"
	"testing"

	dockernet "github.com/docker/docker/api/types/network"

	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestOneSandboxCannotReachAnother(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	a, b := run(t, r, "a"), run(t, r, "b") // run has shown that the gateway reaches both
	for _, addr := range []string{b.GuestAddr, b.OpenCodeAddr} {
		if got := ask(t, a, "/connect", url.Values{"addr": {addr}}); !strings.HasPrefix(got, "failed") {
			t.Errorf("a → %s: %s; the engine does not enforce %s=false", addr, got, optionICC)
		}
	}
	// That it fails is not for want of a network: the host's address is reached.
	host, err := r.EnsureNetwork(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	if got := ask(t, a, "/connect", url.Values{"addr": {ln.Addr().String()}}); got != "connected" {
		t.Errorf("a → host: %s", got)
	}
	// Nor is another installation's sandbox reached.
	other := run(t, newRuntime(t), "b")
	if got := ask(t, a, "/connect", url.Values{"addr": {other.GuestAddr}}); !strings.HasPrefix(got, "failed") {
		t.Errorf("a → another installation's: %s", got)
	}
}

func TestManyMakeOneNetwork(t *testing.T) {
	ctx := testContext(t)
	first := newRuntime(t)
	const callers = 6
	addrs, errs := make(chan string, callers), make(chan error, callers)
	for range callers {
		r, err := New(first.set, testLog(t)) // as another process would
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		go func() {
			addr, err := r.EnsureNetwork(ctx)
			addrs <- addr
			errs <- err
		}()
	}
	want := ""
	for range callers {
		addr, err := <-addrs, <-errs
		if err != nil {
			t.Error(err)
			continue
		}
		if want == "" {
			want = addr
		}
		if addr != want || net.ParseIP(addr) == nil {
			t.Errorf("one caller was told %q, another %q", want, addr)
		}
	}
	e, err := first.connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := first.findNetworks(ctx, e); err != nil || len(found) != 1 {
		t.Fatalf("networks: %v, %v", found, err)
	}
}

func TestAPrunedNetworkIsMadeAgainAtStart(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	c := run(t, r, "pruned")
	if err := r.Stop(ctx, c.ID, 0); err != nil {
		t.Fatal(err)
	}
	if err := world.cli.NetworkRemove(ctx, r.set.Network); err != nil {
		t.Fatal(err)
	}
	again, err := r.Start(ctx, c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, again, "/name", nil); got != "pruned" {
		t.Fatalf("there answers %q", got)
	}
	if err := r.Stop(ctx, c.ID, 0); err != nil {
		t.Fatal(err)
	}
	if err := world.cli.NetworkRemove(ctx, r.set.Network); err != nil {
		t.Fatal(err)
	}
	run(t, r, "created-after-prune")
}

func TestANetworkThatDoesNotIsolateIsRefused(t *testing.T) {
	ctx := testContext(t)
	r := newRuntime(t)
	for name, labels := range map[string]map[string]string{"foreign": nil, "ours": r.labels()} {
		t.Run(name, func(t *testing.T) {
			made, err := world.cli.NetworkCreate(ctx, r.set.Network, dockernet.CreateOptions{Driver: "bridge", Labels: labels})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := world.cli.NetworkRemove(ctx, made.ID); err != nil {
					t.Error(err)
				}
			}()
			want := sandbox.CodeConflict
			if labels == nil {
				want = sandbox.CodeNameTaken
			}
			_, err = r.EnsureNetwork(ctx)
			wantCode(t, err, want)
			_, err = r.Create(ctx, specOf(r, "x"))
			wantCode(t, err, want)
		})
	}
}
