package config

import (
	"maps"
	"strings"
	"testing"
)

func TestTheSandboxesDomainIsKeptApart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		variables map[string]string
		says      string // empty if all is well
	}{
		"off":                                   {map[string]string{"SANDBOX_DOMAIN": "off"}, ""},
		"a domain of its own":                   {map[string]string{}, ""},
		"a public suffix's neighbour":           {map[string]string{"SANDBOX_DOMAIN": "me.github.io", "PUBLIC_URL": "https://you.github.io"}, ""},
		"one site with the gateway":             {map[string]string{"SANDBOX_DOMAIN": "sandboxes.example.com"}, "one site (example.com) with the host of PUBLIC_URL"},
		"one site, accepted":                    {map[string]string{"SANDBOX_DOMAIN": "sandboxes.example.com", "ACCEPT_SHARED_SITE": "true"}, ""},
		"one site with the API":                 {map[string]string{"AGENTPOD_API_URL": "https://api.sandboxes-example.net"}, "AGENTPOD_API_URL"},
		"the API on a loopback address":         {map[string]string{"AGENTPOD_API_URL": "http://127.0.0.1:3001"}, ""},
		"the gateway under the domain":          {map[string]string{"PUBLIC_URL": "https://gw.sandboxes-example.net", "ACCEPT_SHARED_SITE": "true"}, "must not be under SANDBOX_DOMAIN"},
		"the gateway under the loopback domain": {map[string]string{"SANDBOX_DOMAIN": "sandbox.localhost", "PUBLIC_URL": "http://gw.sandbox.localhost:8787"}, "not under SANDBOX_DOMAIN"},
		"plain http":                            {map[string]string{"PUBLIC_URL": "http://agentpod.example.com"}, "https"},
		"no public address":                     {map[string]string{"PUBLIC_URL": ""}, "PUBLIC_URL must be an https URL"},
		"a public address with a path":          {map[string]string{"PUBLIC_URL": "https://a.example.com/x"}, "PUBLIC_URL must be an http"},
		"a domain with a port":                  {map[string]string{"SANDBOX_DOMAIN": "a.example.net:1"}, "SANDBOX_DOMAIN must be"},
		"a domain in upper case":                {map[string]string{"SANDBOX_DOMAIN": "A.example.net"}, "SANDBOX_DOMAIN must be"},
		"an address":                            {map[string]string{"SANDBOX_DOMAIN": "10.0.0.1"}, "SANDBOX_DOMAIN must be"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			variables := map[string]string{"SANDBOX_DOMAIN": "sandboxes-example.net", "PUBLIC_URL": "https://agentpod.example.com"}
			maps.Copy(variables, c.variables)
			_, err := Load(variables)
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestThePublicAddress(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ public, bound, want string }{
		{"", "127.0.0.1:8787", "http://127.0.0.1:8787"},
		{"", "0.0.0.0:1", "http://127.0.0.1:1"},
		{"", "[::]:1", "http://127.0.0.1:1"},
		{"", ":1", "http://127.0.0.1:1"},
		{"", "[::1]:1", "http://[::1]:1"},
		{"https://a.example.com/", "0.0.0.0:1", "https://a.example.com"},
	} {
		if got := (&Config{PublicURL: c.public}).Public(c.bound).String(); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
