package docker

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	dockernet "github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// Options of the engine's bridge driver.
const (
	optionICC        = "com.docker.network.bridge.enable_icc"
	optionBridgeName = "com.docker.network.bridge.name"
)

// network is the installation's network as it was last seen.
type network struct {
	gateway string // the host's address on it
	direct  bool   // containers are dialled at their own addresses
}

// EnsureNetwork makes the installation's bridge network unless it exists, and
// returns the host's address on it: the one address of the host that sandboxes
// are meant to reach. It can be called at any time and by several at once.
// Traffic between the containers of the network is off, also towards a gateway
// that would run in a container on it.
func (r *Runtime) EnsureNetwork(ctx context.Context) (hostAddr string, err error) {
	nw, err := r.makeNetwork(ctx)
	if err != nil {
		return "", err
	}
	return nw.gateway, nil
}

// RemoveNetwork removes the installation's network; removing what is gone is fine.
func (r *Runtime) RemoveNetwork(ctx context.Context) error {
	return r.call(ctx, step{call: "remove_network", doing: "remove the sandboxes' network"}, func(ctx context.Context, e *engine) error {
		r.network.Store(nil)
		found, err := r.findNetworks(ctx, e)
		if err != nil {
			return err
		}
		for _, nw := range found {
			if err := e.cli.NetworkRemove(ctx, nw.ID); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		return nil
	})
}

// useNetwork returns the network, made on first use.
func (r *Runtime) useNetwork(ctx context.Context) (*network, error) {
	if nw := r.network.Load(); nw != nil {
		return nw, nil
	}
	return r.makeNetwork(ctx)
}

func (r *Runtime) makeNetwork(ctx context.Context) (*network, error) {
	var nw *network
	err := r.call(ctx, step{call: "network", doing: "make the sandboxes' network"}, func(ctx context.Context, e *engine) error {
		if err := r.lock(ctx); err != nil {
			return err
		}
		defer r.unlock()
		chosen, err := r.chooseNetwork(ctx, e)
		if err != nil {
			return err
		}
		nw, err = r.assess(ctx, e, chosen)
		if err != nil {
			return err
		}
		r.network.Store(nw)
		return nil
	})
	return nw, err
}

// chooseNetwork finds or makes the network. The engine does not keep names of
// networks unique against two creates at once, so whoever makes one looks
// again, and everybody settles on the oldest.
func (r *Runtime) chooseNetwork(ctx context.Context, e *engine) (dockernet.Summary, error) {
	found, err := r.findNetworks(ctx, e)
	if err != nil {
		return dockernet.Summary{}, err
	}
	made := ""
	if len(found) == 0 {
		resp, err := e.cli.NetworkCreate(ctx, r.set.Network, dockernet.CreateOptions{
			Driver:  "bridge",
			Options: map[string]string{optionICC: "false"},
			Labels:  r.labels(),
		})
		if err != nil && !errdefs.IsConflict(err) {
			return dockernet.Summary{}, err
		}
		made = resp.ID
		if found, err = r.findNetworks(ctx, e); err != nil {
			return dockernet.Summary{}, err
		}
	}
	if len(found) == 0 {
		return dockernet.Summary{}, sandbox.Errorf(sandbox.CodeConflict, "the sandboxes' network %s was removed while it was made; try again", r.set.Network)
	}
	oldest := found[0]
	if made != "" && made != oldest.ID {
		if err := e.cli.NetworkRemove(ctx, made); err != nil && !errdefs.IsNotFound(err) {
			return dockernet.Summary{}, err
		}
	}
	return oldest, nil
}

// findNetworks returns the networks with our name and label, the oldest first.
func (r *Runtime) findNetworks(ctx context.Context, e *engine) ([]dockernet.Summary, error) {
	// The name filter matches parts of names, and a network of that name that is
	// not ours must be seen, so the label is checked here.
	list, err := e.cli.NetworkList(ctx, dockernet.ListOptions{Filters: filters.NewArgs(filters.Arg("name", r.set.Network))})
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(n dockernet.Summary) bool { return n.Name != r.set.Network })
	for _, n := range list {
		if !r.ours(n.Labels) {
			return nil, sandbox.Errorf(sandbox.CodeNameTaken,
				"a network named %s exists and is not this gateway's; remove it (docker network rm) and try again", r.set.Network)
		}
	}
	slices.SortFunc(list, func(a, b dockernet.Summary) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list, nil
}

// assess checks that the network isolates, and finds out how to reach what is on it.
func (r *Runtime) assess(ctx context.Context, e *engine, n dockernet.Summary) (*network, error) {
	if n.Driver != "bridge" || n.Options[optionICC] != "false" {
		return nil, sandbox.Errorf(sandbox.CodeConflict,
			"the network %s does not keep sandboxes apart (driver %s, %s=%s); remove it, and it is made again as it must be",
			r.set.Network, n.Driver, optionICC, n.Options[optionICC])
	}
	gateway, err := gatewayOf(n)
	if err != nil {
		return nil, err
	}
	nw := &network{gateway: gateway.String()}
	switch r.set.Reach {
	case ReachDirect:
		nw.direct = true
	case ReachPublished:
	default:
		nw.direct = holdsBridge(bridgeName(n), gateway)
		if !nw.direct && remote(e.cli.DaemonHost()) {
			return nil, sandbox.Errorf(sandbox.CodeEngineAway,
				"the container engine at %s is on another machine, whose loopback address cannot be reached: route the network of %s to it and set reach to %s",
				r.host, r.set.Network, ReachDirect)
		}
	}
	r.log.InfoContext(ctx, "sandbox network ready", "network", r.set.Network, "hostAddress", nw.gateway, "direct", nw.direct)
	return nw, nil
}

func gatewayOf(n dockernet.Summary) (netip.Addr, error) {
	for _, c := range n.IPAM.Config {
		addr, _, _ := strings.Cut(c.Gateway, "/") // some engines add the prefix length
		if ip, err := netip.ParseAddr(addr); err == nil && ip.Is4() {
			return ip, nil
		}
	}
	return netip.Addr{}, sandbox.Errorf(sandbox.CodeConflict,
		"the network %s has no IPv4 gateway; remove it (docker network rm), and it is made again as it must be", n.Name)
}

// bridgeName is the host's interface behind a bridge network.
func bridgeName(n dockernet.Summary) string {
	if name := n.Options[optionBridgeName]; name != "" {
		return name
	}
	const prefix, idLength = "br-", 12
	return prefix + n.ID[:min(len(n.ID), idLength)]
}

// holdsBridge reports whether this process sees the bridge itself. The name
// derives from the network's random id, so that another engine's network with
// the same addresses is not mistaken for it.
func holdsBridge(name string, gateway netip.Addr) bool {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return false
	}
	addrs, err := iface.Addrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr() == gateway
	})
}

// remote reports whether the engine's address is another machine's.
func remote(host string) bool {
	u, err := client.ParseHostURL(host)
	if err != nil || u.Scheme != "tcp" {
		return false
	}
	name := u.Hostname()
	ip, err := netip.ParseAddr(name)
	return name != "localhost" && (err != nil || !ip.IsLoopback())
}
