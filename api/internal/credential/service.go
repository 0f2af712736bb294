package credential

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/seal"
)

const (
	// MaxKey bounds a provider's key, in bytes.
	MaxKey = 4 << 10
	// maxShown bounds what an error repeats of a request, in bytes.
	maxShown = 80
	// batch is how many credentials a rotation reads at once.
	batch = 100
)

// Settings of a Service.
type Settings struct {
	// Keys seal the credentials.
	Keys      *seal.Keyring
	Catalogue *Catalogue
	Log       *slog.Logger
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

// Service keeps what users give to their sandboxes. Keys go in and come out in
// Config alone. Its errors for callers are *sandbox.Error. It is safe for
// concurrent use, and so are several on one database.
type Service struct {
	settings    Settings
	credentials Credentials
	configs     Configs
}

// New makes a service.
func New(settings Settings, credentials Credentials, configs Configs) *Service {
	if settings.Now == nil {
		settings.Now = time.Now
	}
	return &Service{settings: settings, credentials: credentials, configs: configs}
}

// now is the time as it is kept: UTC, in milliseconds.
func (s *Service) now() time.Time { return s.settings.Now().UTC().Truncate(time.Millisecond) }

// place is what a key is bound to: it opens nowhere else.
func place(userID, providerID string) []byte {
	return []byte("provider_credentials\x00" + userID + "\x00" + providerID)
}

func (s *Service) seal(key, bound []byte) string {
	return base64.StdEncoding.EncodeToString(s.settings.Keys.Seal(key, bound))
}

func (s *Service) open(c Credential) ([]byte, error) {
	sealed, err := base64.StdEncoding.DecodeString(c.Sealed)
	if err != nil {
		return nil, seal.ErrSeal // the text of err would repeat a part of it
	}
	return s.settings.Keys.Open(sealed, place(c.UserID, c.ProviderID)) //nolint:wrapcheck // callers say what they were doing
}

// Rotate seals with the current key what former ones sealed. It may be
// interrupted at any point, which the next call makes good, and may run in
// several processes at once. If a key is missing it is an error that names the
// key by its id. A credential that does not open though its key is there is
// logged and stays as it is.
func (s *Service) Rotate(ctx context.Context) error {
	current := s.settings.Keys.KeyID()
	damaged := map[string]bool{}
	for {
		rows, err := s.credentials.SealedOtherwise(ctx, current, batch+len(damaged))
		if err != nil {
			return fmt.Errorf("sealing the credentials with the current key: %w", err)
		}
		rows = slices.DeleteFunc(rows, func(c Credential) bool { return damaged[c.ID] })
		if len(rows) == 0 {
			return nil
		}
		for _, row := range rows {
			if err := s.reseal(ctx, row, damaged); err != nil {
				return err
			}
		}
	}
}

func (s *Service) reseal(ctx context.Context, row Credential, damaged map[string]bool) error {
	current := s.settings.Keys.KeyID()
	if !s.settings.Keys.Has(row.KeyID) {
		return fmt.Errorf("credentials are sealed with key %s, and ENCRYPTION_KEY is %s: set ENCRYPTION_KEY to the key with the id %[1]s, "+
			"or add that one to ENCRYPTION_KEYS_FORMER; if it is lost, delete the rows of provider_credentials with that key_id", printable.Line(row.KeyID, maxShown), current)
	}
	plain, err := s.open(row)
	if err != nil {
		s.settings.Log.WarnContext(ctx, "a credential cannot be opened; its user has to configure the provider again",
			"credentialId", row.ID, "userId", row.UserID, "providerId", row.ProviderID)
		damaged[row.ID] = true
		return nil //nolint:nilerr // as documented
	}
	// Whoever changes it meanwhile wins; the next batch has it if it must be.
	if _, err := s.credentials.Reseal(ctx, row, s.seal(plain, place(row.UserID, row.ProviderID)), current, s.now()); err != nil {
		return fmt.Errorf("sealing the credentials with the current key, which the next start goes on with: %w", err)
	}
	return nil
}

// Configure keeps a user's key for a provider, in place of an earlier one, and
// returns the provider. Errors: provider_not_found, invalid_request.
func (s *Service) Configure(ctx context.Context, userID, providerID, key string) (Provider, error) {
	p, known := s.settings.Catalogue.find(providerID)
	if !known {
		return p, noProvider(providerID)
	}
	if p.AuthType != AuthAPIKey {
		return p, sandbox.Errorf(sandbox.CodeInvalidRequest, "%s is not used with an API key but by signing in to it, which is not possible here", p.Name)
	}
	key = strings.TrimSpace(key)
	switch {
	case key == "":
		return p, sandbox.Errorf(sandbox.CodeInvalidRequest, "apiKey is missing: give the key of %s", p.Name)
	case len(key) > MaxKey:
		return p, sandbox.Errorf(sandbox.CodeInvalidRequest, "apiKey is longer than %d bytes", MaxKey)
	case !utf8.ValidString(key) || strings.ContainsFunc(key, unicode.IsControl):
		return p, sandbox.Errorf(sandbox.CodeInvalidRequest, "apiKey has control characters; was it copied whole and alone?")
	}
	now := s.now()
	err := s.credentials.Save(ctx, Credential{
		ID: rand.Text(), UserID: userID, ProviderID: providerID,
		Sealed: s.seal([]byte(key), place(userID, providerID)), KeyID: s.settings.Keys.KeyID(), CreatedAt: now, UpdatedAt: now,
	})
	if err != nil {
		return p, fmt.Errorf("configuring a provider: %w", err)
	}
	p.Configured = true
	return p, nil
}

func noProvider(id string) error {
	return sandbox.Errorf(sandbox.CodeProviderNotFound, "there is no provider %q; GET /api/providers lists them", printable.Line(id, maxShown))
}

// SetDefault makes a provider the one that a user's sandboxes use if they are
// not told otherwise, and returns it. Errors: provider_not_configured.
func (s *Service) SetDefault(ctx context.Context, userID, providerID string) (Provider, error) {
	err := ErrNotFound
	if guest.CheckProvider(providerID) == nil { // it may have left the catalogue
		err = s.credentials.SetDefault(ctx, userID, providerID, s.now())
	}
	if errors.Is(err, ErrNotFound) {
		return Provider{}, sandbox.Errorf(sandbox.CodeProviderMissing, "the provider %q is not configured; give its key first", printable.Line(providerID, maxShown))
	}
	if err != nil {
		return Provider{}, fmt.Errorf("setting a default provider: %w", err)
	}
	return s.view(Credential{ProviderID: providerID, IsDefault: true}), nil
}

// Delete forgets a user's key for a provider, which it returns. Errors:
// provider_not_found.
func (s *Service) Delete(ctx context.Context, userID, providerID string) (Provider, error) {
	err := ErrNotFound
	if guest.CheckProvider(providerID) == nil {
		err = s.credentials.Delete(ctx, userID, providerID)
	}
	if errors.Is(err, ErrNotFound) {
		return Provider{}, sandbox.Errorf(sandbox.CodeProviderNotFound, "the provider %q is not configured", printable.Line(providerID, maxShown))
	}
	if err != nil {
		return Provider{}, fmt.Errorf("deleting a credential: %w", err)
	}
	return s.describe(providerID), nil
}

// describe returns a provider of the catalogue, or what is left to say of one
// that is not in it any more.
func (s *Service) describe(providerID string) Provider {
	p, known := s.settings.Catalogue.find(providerID)
	if !known {
		p = Provider{ID: providerID, Name: providerID, AuthType: AuthAPIKey, Models: []Model{}}
	}
	return p
}

func (s *Service) view(c Credential) Provider {
	p := s.describe(c.ProviderID)
	p.Configured, p.Default = true, c.IsDefault
	return p
}

// List returns every provider as the user has it, the popular ones first, or
// those alone.
func (s *Service) List(ctx context.Context, userID string, popularOnly bool) ([]Provider, error) {
	configured, err := s.Configured(ctx, userID)
	if err != nil {
		return nil, err
	}
	mine := make(map[string]Provider, len(configured))
	for _, p := range configured {
		mine[p.ID] = p
	}
	list := []Provider{}
	for _, p := range s.settings.Catalogue.list() {
		if popularOnly && !p.Popular {
			continue
		}
		if own, ok := mine[p.ID]; ok {
			p = own
		}
		list = append(list, p)
	}
	return list, nil
}

// Configured returns the providers that a user has given a key for, by id.
func (s *Service) Configured(ctx context.Context, userID string) ([]Provider, error) {
	rows, err := s.credentials.List(ctx, userID)
	if err != nil {
		return nil, fmt.Errorf("listing a user's providers: %w", err)
	}
	list := []Provider{}
	for _, row := range rows {
		list = append(list, s.view(row))
	}
	return list, nil
}

// Default returns a user's default provider, and whether there is one.
func (s *Service) Default(ctx context.Context, userID string) (Provider, bool, error) {
	list, err := s.Configured(ctx, userID)
	if err != nil {
		return Provider{}, false, err
	}
	i := slices.IndexFunc(list, func(p Provider) bool { return p.Default })
	if i < 0 {
		return Provider{}, false, nil
	}
	return list[i], true, nil
}
