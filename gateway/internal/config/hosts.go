package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// noDomain is the SANDBOX_DOMAIN of a gateway whose sandboxes have no hosts.
const noDomain = "off"

// domainPattern is a DNS name in lower case; a label of the longest kind fits in
// front of it.
var domainPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)

const maxDomain = 253 - 64

// Domain is what the sandboxes' own hosts are under; empty if they have none.
func (c *Config) Domain() string {
	if c.SandboxDomain == noDomain {
		return ""
	}
	return c.SandboxDomain
}

// Public is how browsers reach the gateway that listens on bound. It has a scheme
// and a host, perhaps with a port, and nothing else.
func (c *Config) Public(bound string) *url.URL {
	if c.PublicURL != "" {
		if u, err := parsePublic(c.PublicURL); err == nil {
			return u
		}
	}
	host, port, err := net.SplitHostPort(bound)
	if err != nil {
		return &url.URL{Scheme: "http", Host: bound}
	}
	if addr, err := netip.ParseAddr(host); host == "" || err == nil && addr.IsUnspecified() {
		host = "127.0.0.1"
	}
	return &url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}
}

func parsePublic(text string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSuffix(text, "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Path != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%q is not a scheme and a host", text) //nolint:err113 // the caller words it
	}
	return u, nil
}

// validateHosts says what is wrong with the names by which browsers come.
func (c *Config) validateHosts(say func(variable, shape, example string)) (bad []error) {
	if c.PublicURL != "" {
		if _, err := parsePublic(c.PublicURL); err != nil {
			say("PUBLIC_URL", "an http or https URL of a scheme, a host and perhaps a port", "https://agentpod.example.com")
			return nil
		}
	}
	domain := c.Domain()
	if domain == "" {
		return nil
	}
	if _, err := netip.ParseAddr(domain); err == nil || len(domain) > maxDomain || !domainPattern.MatchString(domain) {
		say("SANDBOX_DOMAIN", "a domain name in lower case, without a port, or "+noDomain, "sandboxes.example.net")
		return nil
	}
	public := c.Public(c.Addr)
	if loopback(domain) {
		if below(public.Hostname(), domain) {
			say("PUBLIC_URL", "a host that is not under SANDBOX_DOMAIN", "http://127.0.0.1:8787")
		}
		return nil
	}
	if public.Scheme != "https" {
		say("PUBLIC_URL", "an https URL if SANDBOX_DOMAIN is not under localhost (browsers keep the cookies of sandboxes for https only)", "https://agentpod.example.com")
	}
	others := map[string]string{"PUBLIC_URL": public.Hostname()}
	if api, err := url.Parse(c.APIURL); err == nil && c.APIURL != "" {
		others["AGENTPOD_API_URL"] = api.Hostname()
	}
	for variable, host := range others {
		host = strings.ToLower(strings.TrimSuffix(host, "."))
		switch {
		case below(host, domain):
			bad = append(bad, fmt.Errorf("the host of %s, %s, must not be under SANDBOX_DOMAIN, where only sandboxes are", variable, host))
		case c.AcceptSharedSite || loopback(host) || site(host) != site("x."+domain):
		default:
			bad = append(bad, fmt.Errorf("SANDBOX_DOMAIN %s is of one site (%s) with the host of %s, %s: code in a sandbox could set cookies for it and "+
				"would pass for it where browsers look at sites; use a domain of its own, or set ACCEPT_SHARED_SITE=true if you accept that", domain, site(host), variable, host))
		}
	}
	return bad
}

func below(host, domain string) bool { return host == domain || strings.HasSuffix(host, "."+domain) }

// loopback says whether a name is this machine's own for every browser.
func loopback(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.IsLoopback()
	}
	return below(host, "localhost")
}

// site is what browsers take for one site: the registrable domain. An address, and
// a name that nobody can register, is one of its own.
func site(host string) string {
	if _, err := netip.ParseAddr(host); err == nil {
		return host
	}
	if domain, err := publicsuffix.EffectiveTLDPlusOne(host); err == nil {
		return domain
	}
	return host
}
