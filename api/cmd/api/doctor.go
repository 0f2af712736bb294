package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/agentpod/agentpod/api/internal/config"
	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/doctor"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/tracing"
)

// checkTimeout bounds each check, askTimeout each question to a provider.
const (
	checkTimeout = 12 * time.Second
	askTimeout   = 4 * time.Second
)

// The names of the checks that others need, and of what is wrong at once.
const (
	configurationCheck = "configuration"
	dataDirCheck       = "data folder"
	databaseCheck      = "database"
	gatewayCheck       = "gateway"
)

// examine says for each thing that the API needs whether it is there. loadErr is
// what is wrong with the configuration.
func examine(ctx context.Context, cfg config.Config, loadErr error, asJSON bool, stdout, stderr io.Writer) int {
	x := &examination{cfg: cfg}
	var report doctor.Report
	code := 0
	if loadErr != nil {
		report, code = doctor.Failed(configurationCheck, loadErr, x.checks()...), exitUsage
	} else if report = doctor.Run(ctx, checkTimeout, append([]doctor.Check{{Name: configurationCheck, Do: x.configuration}}, x.checks()...)); !report.OK {
		code = exitFailed
	}
	for _, undo := range x.undos {
		undo()
	}
	if err := report.Print(stdout, asJSON); err != nil {
		_, _ = fmt.Fprintf(stderr, "api: %s\n", err)
		return max(code, exitFailed)
	}
	return code
}

// examination is one look at all that the API needs. It changes nothing.
type examination struct {
	cfg   config.Config
	undos []func()
	state store.State // what the database's check found
}

func (x *examination) checks() []doctor.Check {
	checks := []doctor.Check{
		{Name: dataDirCheck, Do: x.dataDir},
		{Name: "disk", Do: x.disk},
		{Name: "keys", Needs: []string{dataDirCheck}, Do: x.keys},
		{Name: databaseCheck, Needs: []string{dataDirCheck}, Do: x.database},
		{Name: "migrations", Needs: []string{databaseCheck}, Do: x.migrations},
		{Name: "database's clock", Needs: []string{databaseCheck}, Do: x.clock},
	}
	if x.cfg.GatewayURL != "" {
		checks = append(checks, doctor.Check{Name: gatewayCheck, Do: x.gateway}, doctor.Check{Name: "sign-up", Needs: []string{gatewayCheck}, Do: x.signUp})
	}
	if x.cfg.Cloudflare {
		checks = append(checks, doctor.Check{Name: "worker", Do: x.worker})
	}
	return append(checks, doctor.Check{Name: "port", Do: x.port}, doctor.Check{Name: "traces", Do: func(ctx context.Context) (string, error) {
		return tracing.Check(ctx, os.Getenv, service, daemon.Version())
	}})
}

func (x *examination) configuration(context.Context) (string, error) {
	return "every variable has a value that it can have", nil
}

func (x *examination) dataDir(context.Context) (string, error) {
	x.undos = append(x.undos, doctor.Untouched(x.cfg.DataDir))
	return x.cfg.DataDir + " can be written", daemon.TryDataDir(x.cfg.DataDir)
}

func (x *examination) disk(context.Context) (string, error) {
	return doctor.Disk("DATA_DIR", x.cfg.DataDir)
}

// keys looks whether the keys that are given, or in the data folder, are any.
func (x *examination) keys(context.Context) (string, error) {
	made := []string{}
	for _, key := range []struct{ given, file string }{{x.cfg.Secret, secretFile}, {x.cfg.EncryptionKey, encryptionFile}} {
		if key.given != "" {
			continue
		}
		if _, err := os.Stat(filepath.Join(x.cfg.DataDir, key.file)); errors.Is(err, fs.ErrNotExist) {
			made = append(made, key.file)
		}
	}
	// openKeys makes the files that are missing, so it is given what would be in them.
	cfg := x.cfg
	for _, file := range made {
		switch file {
		case secretFile:
			cfg.Secret = rand.Text() + rand.Text()
		case encryptionFile:
			cfg.EncryptionKey = strings.Repeat("0", 64)
		}
	}
	if _, err := openKeys(cfg, slog.New(slog.DiscardHandler)); err != nil {
		return "", err
	}
	if len(made) > 0 {
		return "the first start makes " + strings.Join(made, " and "), nil
	}
	return "those that sign cookies and seal credentials can be used", nil
}

func (x *examination) database(ctx context.Context) (detail string, err error) {
	if x.state, err = store.Look(ctx, databaseURL(x.cfg)); err != nil {
		return "", fmt.Errorf("DATABASE_URL: %w", err)
	}
	if x.state.Absent {
		return "the first start makes the file", nil
	}
	return "it answers", nil
}

func (x *examination) migrations(context.Context) (string, error) {
	switch s := x.state; {
	case s.Absent:
		return "the first start makes the tables", nil
	case s.Version < s.Newest:
		return "", fmt.Errorf("the database's tables are of version %d and this program needs %d: bring them up to date with: api migrate (api serve does so, too)", s.Version, s.Newest)
	case s.Version > s.Newest:
		return "", fmt.Errorf("the database's tables are of version %d and this program knows them up to %d: a newer program has changed them; use that one, or restore the database from before", s.Version, s.Newest)
	default:
		return fmt.Sprintf("the tables are of version %d, the newest", s.Version), nil
	}
}

func (x *examination) clock(context.Context) (string, error) {
	if x.state.Time.IsZero() {
		return "it is this machine's", nil
	}
	return doctor.Clock("the database's server", x.state.Time, x.state.Before, x.state.After)
}

// deadlines are short: nothing is made or woken.
func deadlines() sandbox.Deadlines { return sandbox.Deadlines{Probe: askTimeout, Look: askTimeout} }

// toGateway makes a client of the gateway; the caller closes it.
func (x *examination) toGateway() (*sandbox.GatewayClient, error) {
	set := x.cfg.Gateway()
	set.Deadlines = deadlines()
	gateway, err := sandbox.NewGateway(set)
	if err != nil {
		return nil, fmt.Errorf("GATEWAY_URL: %w", err)
	}
	return gateway, nil
}

// signUp looks whether strangers can read the keys that every sandbox has.
func (x *examination) signUp(ctx context.Context) (string, error) {
	gateway, err := x.toGateway()
	if err != nil {
		return "", err
	}
	defer func() { _ = gateway.Close(ctx) }()
	defaults, err := gateway.Defaults(ctx)
	keys := strings.Join(defaults.Credentials, ", ")
	switch {
	case !x.cfg.SignUpOpen():
		return "closed", nil
	case err != nil && x.cfg.SignUp == config.SignUpAuto:
		return "", fmt.Errorf("closed, as the gateway does not say whether it has default credentials (%s): upgrade it, or set SIGN_UP", sandbox.Public(err, "no answer").Message)
	case err != nil:
		return "", doctor.WarningError("SIGN_UP is true, and the gateway does not say whether it has default credentials; if it has, every user who signs up can read them (" + readable + ")")
	case keys == "":
		return "open; the gateway has no default credentials", nil
	case x.cfg.SignUp == config.SignUpAuto:
		return "", doctor.WarningError("closed, as the gateway has default credentials of " + keys + ", which every user can read (" + readable + "); " +
			"SIGN_UP=true opens it all the same")
	}
	return "", doctor.WarningError("SIGN_UP is true, and the gateway has default credentials of " + keys + ": every user who signs up can read them (" + readable + "); " +
		"set SIGN_UP=false, or take them out of the gateway's environment and have users give keys of their own")
}

func (x *examination) gateway(ctx context.Context) (string, error) {
	gateway, err := x.toGateway()
	if err != nil {
		return "", err
	}
	defer func() { _ = gateway.Close(ctx) }()
	if err = gateway.Health(ctx); err == nil {
		_, err = gateway.List(ctx, sandbox.ListOptions{Limit: 1}) // health asks for no token
	}
	return x.answered("GATEWAY_URL", x.cfg.GatewayURL, "GATEWAY_TOKEN", err)
}

func (x *examination) worker(ctx context.Context) (string, error) {
	set := x.cfg.Worker()
	set.Deadlines = deadlines()
	worker, err := sandbox.NewWorker(set, &sandbox.MemoryRecords{})
	if err != nil {
		return "", fmt.Errorf("CLOUDFLARE_WORKER_URL: %w", err)
	}
	defer func() { _ = worker.Close(ctx) }()
	if err = worker.Health(ctx); err == nil {
		// Health asks for no token. There is no sandbox of that name.
		if _, err = worker.Get(ctx, "doctor-"+strings.ToLower(rand.Text())); sandbox.HasCode(err, sandbox.CodeSandboxNotFound) {
			err = nil
		}
	}
	return x.answered("CLOUDFLARE_WORKER_URL", x.cfg.WorkerURL, "CLOUDFLARE_API_TOKEN", err)
}

// answered says how a provider answered, and what to do if it did not.
func (x *examination) answered(variable, address, token string, err error) (string, error) {
	if err == nil {
		return address + " answers, and takes the token", nil
	}
	advice := "start it, or correct " + variable
	switch sandbox.CodeOf(err) { //nolint:exhaustive // the others say it themselves
	case sandbox.CodeUnauthorized:
		advice = "set " + token + " to the token that it has"
	case sandbox.CodeForbiddenHost:
		advice = "add the name to its ALLOWED_HOSTS"
	}
	said := sandbox.Public(err, "it does not answer as it should")
	if said.Cause != nil {
		return "", fmt.Errorf("%s %s: %s (%w): %s", variable, address, said.Message, said.Cause, advice)
	}
	return "", fmt.Errorf("%s %s: %s: %s", variable, address, said.Message, advice) //nolint:err113 // a sentence for people
}

func (x *examination) port(ctx context.Context) (string, error) {
	return doctor.Port(ctx, "API_ADDR", x.cfg.Addr, func(ctx context.Context) error { return health(ctx, x.cfg, nil) })
}
