package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/config"
	"github.com/agentpod/agentpod/shared/seal"
)

// The files in DATA_DIR that the API makes if they are not there.
const (
	secretFile     = "api.secret"
	encryptionFile = "encryption.key"
)

func databaseURL(cfg config.Config) string {
	if cfg.DatabaseURL != "" {
		return cfg.DatabaseURL
	}
	return "sqlite:" + filepath.Join(cfg.DataDir, "api.db")
}

// keys are what the API signs and seals with.
type keys struct {
	cookies     []byte
	credentials *seal.Keyring
}

// openKeys takes the keys from the configuration, or from the data folder, where
// it makes those that are missing.
func openKeys(cfg config.Config, log *slog.Logger) (keys, error) {
	if cfg.Secret == "" {
		path := filepath.Join(cfg.DataDir, secretFile)
		secret, made, err := seal.LoadOrMakeSecret(path, func() string { return rand.Text() + rand.Text() })
		if err != nil {
			return keys{}, fmt.Errorf("API_SECRET: %w", err)
		}
		if made {
			log.Info("a secret that signs cookies was made", "file", path)
		}
		cfg.Secret = secret
	}
	keyring, err := openKeyring(cfg, log)
	return keys{cookies: []byte(cfg.Secret), credentials: keyring}, err
}

func openKeyring(cfg config.Config, log *slog.Logger) (*seal.Keyring, error) {
	current, err := encryptionKey(cfg, log)
	if err != nil {
		return nil, fmt.Errorf("ENCRYPTION_KEY: %w", err)
	}
	former := make([][seal.KeySize]byte, len(cfg.EncryptionKeysFormer))
	for i, text := range cfg.EncryptionKeysFormer {
		if former[i], err = seal.ParseKey(text); err != nil {
			return nil, fmt.Errorf("ENCRYPTION_KEYS_FORMER, number %d: %w", i+1, err)
		}
	}
	return seal.NewKeyring(current, former...)
}

func encryptionKey(cfg config.Config, log *slog.Logger) ([seal.KeySize]byte, error) {
	if cfg.EncryptionKey != "" {
		return seal.ParseKey(cfg.EncryptionKey)
	}
	path := filepath.Join(cfg.DataDir, encryptionFile)
	key, made, err := seal.LoadOrMakeKey(path)
	if made {
		log.Info("a key that seals credentials was made; without it they cannot be read", "file", path)
	}
	return key, err
}

// makeAdmin makes the first account if it is to be made here. A password that
// nobody gave is kept in the data folder; it is written before the account is
// made, so that no account is left whose password nobody knows.
func makeAdmin(ctx context.Context, cfg config.Config, accounts *account.Service, users account.Repository, log *slog.Logger) error {
	if !cfg.MakeAdmin {
		return nil
	}
	if n, err := users.CountUsers(ctx); err != nil || n > 0 {
		return err
	}
	from := "ADMIN_PASSWORD"
	if cfg.AdminPassword == "" {
		from = filepath.Join(cfg.DataDir, "admin.password")
		password, _, err := seal.LoadOrMakeSecret(from, rand.Text)
		if err != nil {
			return fmt.Errorf("the admin's password: %w", err)
		}
		cfg.AdminPassword = password
	}
	made, err := accounts.EnsureAdmin(ctx, "Admin", cfg.AdminEmail, cfg.AdminPassword)
	if err != nil {
		return fmt.Errorf("making the admin with the password of %s: %w", from, err)
	}
	if made {
		log.InfoContext(ctx, "an admin was made", "email", cfg.AdminEmail, "passwordIn", from)
	}
	return nil
}
