package credential

import (
	"cmp"
	"context"
	_ "embed" // the catalogue that is shipped
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
)

// AuthType is how a provider is signed in to.
type AuthType string

// The ways to sign in to a provider. Only AuthAPIKey can be configured here.
const (
	AuthAPIKey     AuthType = "api_key"
	AuthOAuth      AuthType = "oauth"
	AuthDeviceFlow AuthType = "device_flow"
)

// Provider is a provider of models as the catalogue has it, and as a user has
// configured it.
type Provider struct {
	ID       string
	Name     string
	AuthType AuthType
	// KeyEnv is the environment variable that programs read the key from, if any.
	KeyEnv string
	// Endpoint is the https base URL of a provider that a list tells and the catalogue
	// that is shipped does not have; empty if it is not told. A gateway knows the others'.
	Endpoint string
	// Popular says that it is in the catalogue that is shipped.
	Popular bool
	// Models are the current ones, the newest first.
	Models []Model
	// DefaultModel is the id of the one to use if the user names none; empty if
	// there are no models.
	DefaultModel string

	Configured, Default bool
}

// Model is a model of a provider.
type Model struct {
	ID          string
	Name        string
	ReleaseDate string // a day, or empty
	// Attachment, Reasoning and ToolCall are what the model can do.
	Attachment, Reasoning, ToolCall bool
	// Context and Output are limits in tokens; 0 is unknown.
	Context, Output int64
	// Input and OutputCost are dollars a million tokens; nil is unknown.
	InputCost, OutputCost *float64
}

// What is taken of a catalogue.
const (
	maxCatalogue  = 8 << 20 // bytes
	maxCatalogued = 2000    // providers
	maxText       = 200     // bytes of a name
	readTimeout   = 30 * time.Second
	// RefreshEvery is how often a Catalogue reads its source.
	RefreshEvery = 24 * time.Hour
	maxRedirects = 5
)

//go:embed catalogue.json
var shipped []byte

// Catalogue knows the providers of models: those that are shipped, until a newer
// list was read. It is safe for concurrent use.
type Catalogue struct {
	source    string
	client    *http.Client
	log       *slog.Logger
	shipped   map[string]Provider
	providers atomic.Pointer[map[string]Provider]
}

// NewCatalogue makes a catalogue of what is shipped. The source is where Run
// reads a newer one: the path of a file, an https URL, or empty for nowhere. A
// transport is for tests; nil is the usual one.
func NewCatalogue(source string, transport http.RoundTripper, log *slog.Logger) (*Catalogue, error) {
	if scheme, _, is := strings.Cut(source, "://"); is && scheme != "https" {
		return nil, fmt.Errorf("the catalogue of providers must be a file or an https URL, not %s", scheme)
	}
	c := &Catalogue{source: source, log: log, client: &http.Client{Transport: transport, CheckRedirect: onlyTLS}}
	var err error
	if c.shipped, err = parseCatalogue(shipped, nil); err != nil {
		return nil, fmt.Errorf("reading the catalogue that is shipped: %w", err)
	}
	c.providers.Store(&c.shipped)
	return c, nil
}

// onlyTLS lets no redirect lead to where anybody on the way can write the list.
func onlyTLS(r *http.Request, via []*http.Request) error {
	if r.URL.Scheme != "https" {
		return errors.New("it redirects to what is not https")
	}
	if len(via) > maxRedirects {
		return errors.New("it redirects too often")
	}
	return nil
}

// Run reads the source, at once and then every RefreshEvery, until the context
// ends. What cannot be read or is no catalogue is logged, and the list stays.
func (c *Catalogue) Run(ctx context.Context) {
	if c.source == "" {
		return
	}
	tick := time.NewTicker(RefreshEvery)
	defer tick.Stop()
	for {
		if err := c.Refresh(ctx); err != nil && ctx.Err() == nil {
			c.log.WarnContext(ctx, "the catalogue of providers could not be read; the list stays as it is", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Refresh reads the source once.
func (c *Catalogue) Refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	raw, err := c.read(ctx)
	if err != nil {
		return fmt.Errorf("reading the catalogue of providers: %w", withoutURL(err))
	}
	providers, err := parseCatalogue(raw, c.shipped)
	if err != nil {
		return fmt.Errorf("reading the catalogue of providers: %w", err)
	}
	c.providers.Store(&providers)
	return nil
}

// withoutURL takes the address out of an error: it may have a secret in it.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

func (c *Catalogue) read(ctx context.Context) ([]byte, error) {
	if !strings.HasPrefix(c.source, "https://") {
		// A pipe would be waited for without end.
		info, err := os.Stat(c.source)
		if err != nil {
			return nil, err //nolint:wrapcheck // Refresh does
		}
		if !info.Mode().IsRegular() {
			return nil, errors.New("it is not a file")
		}
		file, err := os.Open(c.source)
		if err != nil {
			return nil, err //nolint:wrapcheck // Refresh does
		}
		defer func() { _ = file.Close() }()
		return bounded(file)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.source, nil)
	if err != nil {
		return nil, err //nolint:wrapcheck // Refresh does
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err //nolint:wrapcheck // Refresh does
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the answer is %d", resp.StatusCode)
	}
	return bounded(resp.Body)
}

func bounded(r io.Reader) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxCatalogue+1))
	if err == nil && len(raw) > maxCatalogue {
		err = fmt.Errorf("it is larger than %d bytes", maxCatalogue)
	}
	return raw, err //nolint:wrapcheck // Refresh does
}

// listed is a provider as models.dev lists it. default_model is ours.
type listed struct {
	ID           string                 `json:"id"`
	Name         string                 `json:"name"`
	Env          []string               `json:"env"`
	API          string                 `json:"api"`
	DefaultModel string                 `json:"default_model"`
	Models       map[string]listedModel `json:"models"`
}

type listedModel struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Status      string `json:"status"`
	ReleaseDate string `json:"release_date"`
	Attachment  bool   `json:"attachment"`
	Reasoning   bool   `json:"reasoning"`
	ToolCall    bool   `json:"tool_call"`
	Limit       struct {
		Context float64 `json:"context"`
		Output  float64 `json:"output"`
	} `json:"limit"`
	Cost struct {
		Input  *float64 `json:"input"`
		Output *float64 `json:"output"`
	} `json:"cost"`
}

// parseCatalogue reads a list of providers. What is shipped says which are
// popular, and which of a provider's models to use if the list does not; nil
// means that this is it.
func parseCatalogue(raw []byte, ours map[string]Provider) (map[string]Provider, error) {
	var list map[string]listed
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("it is no catalogue of providers: %w", err)
	}
	if len(list) == 0 || len(list) > maxCatalogued {
		return nil, fmt.Errorf("it has %d providers", len(list))
	}
	providers := make(map[string]Provider, len(list))
	for id, entry := range list {
		if entry.ID != id || guest.CheckProvider(id) != nil {
			return nil, fmt.Errorf("it has a provider %q with the id %q", printable.Line(id, maxText), printable.Line(entry.ID, maxText))
		}
		known, popular := ours[id]
		p := Provider{ID: id, Name: named(entry.Name, id), Popular: popular || ours == nil, Models: entry.models()}
		p.AuthType, p.KeyEnv = signIn(id, entry.Env)
		if u, err := url.Parse(entry.API); !p.Popular && err == nil && u.Scheme == "https" && u.Host != "" && !strings.Contains(entry.API, "$") {
			p.Endpoint = entry.API
		}
		p.DefaultModel = p.pick(entry.DefaultModel, known.DefaultModel)
		providers[id] = p
	}
	return providers, nil
}

func named(name, id string) string { return cmp.Or(printable.Line(name, maxText), id) }

// models returns the models that are current, the newest first.
func (l listed) models() []Model {
	models := []Model{}
	for id, m := range l.Models {
		if id != printable.Line(id, maxText) || id == "" || m.Status == "deprecated" {
			continue
		}
		models = append(models, Model{
			ID: id, Name: named(m.Name, id), ReleaseDate: printable.Line(m.ReleaseDate, len(time.DateOnly)),
			Attachment: m.Attachment, Reasoning: m.Reasoning, ToolCall: m.ToolCall,
			Context: int64(m.Limit.Context), Output: int64(m.Limit.Output), InputCost: m.Cost.Input, OutputCost: m.Cost.Output,
		})
	}
	slices.SortFunc(models, func(a, b Model) int {
		return cmp.Or(cmp.Compare(b.ReleaseDate, a.ReleaseDate), cmp.Compare(a.ID, b.ID))
	})
	return models
}

// signIn says how a provider is signed in to, which a list does not: by its
// environment variables, the last of which is for a key if there is one.
func signIn(id string, env []string) (AuthType, string) {
	if id == "github-copilot" {
		return AuthDeviceFlow, ""
	}
	for _, name := range slices.Backward(env) {
		if strings.Contains(name, "KEY") || strings.Contains(name, "TOKEN") {
			return AuthAPIKey, printable.Line(name, maxText)
		}
	}
	return AuthOAuth, ""
}

// pick returns the first of the ids that is a model's, or the newest model that
// an agent can be run with.
func (p Provider) pick(ids ...string) string {
	for _, id := range ids {
		if slices.ContainsFunc(p.Models, func(m Model) bool { return m.ID == id }) {
			return id
		}
	}
	for _, m := range p.Models {
		if m.ToolCall {
			return m.ID
		}
	}
	return ""
}

// find returns a provider by its id.
func (c *Catalogue) find(id string) (Provider, bool) {
	p, ok := (*c.providers.Load())[id]
	return p, ok
}

// list returns the providers: the popular ones first, and each part by name.
func (c *Catalogue) list() []Provider {
	return slices.SortedFunc(maps.Values(*c.providers.Load()), func(a, b Provider) int {
		if a.Popular != b.Popular {
			if a.Popular {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)), cmp.Compare(a.ID, b.ID))
	})
}
