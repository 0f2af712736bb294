package task

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// systemTemplates are the templates that ship with the API. In a prompt
// {{name}} stands for what is filled in for the placeholder of that name.
//
//go:embed templates.json
var systemTemplates []byte

// Draft is what a user says of a template.
type Draft struct {
	Name         string        `json:"name"`
	Description  string        `json:"description"`
	Icon         string        `json:"icon"`
	Category     string        `json:"category"`
	Prompt       string        `json:"prompt"`
	Placeholders []Placeholder `json:"placeholders"`
}

// Placeholder is a gap in a template's prompt.
type Placeholder struct {
	Name         string   `json:"name"`
	Label        string   `json:"label"`
	Type         string   `json:"type"`              // text, textarea or select
	Options      []string `json:"options,omitempty"` // of a select
	Required     bool     `json:"required,omitempty"`
	DefaultValue string   `json:"defaultValue,omitempty"`
}

// MaxTemplates is how many templates of their own a user may have. Requests at
// the same moment may pass it by as many as they are.
const MaxTemplates = 200

// The bounds of a template, in characters or in number.
const (
	maxTemplateName  = 100
	maxDescription   = 500
	maxIcon          = 40
	maxCategory      = 40
	maxPrompt        = 20_000
	maxPlaceholders  = 20
	maxLabel         = 100
	maxOptions       = 50
	maxOption        = 200
	maxDefault       = 2000
	typeText         = "text"
	typeTextarea     = "textarea"
	typeSelect       = "select"
	templateIDPrefix = "template-"
)

var placeholderName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_]{0,39}$`)

// Library is the templates that users choose from: those that ship with the API
// and their own. It is safe for concurrent use.
type Library struct {
	rows   Templates
	system []Template
	now    func() time.Time
}

// NewLibrary makes a Library; a now that is nil means time.Now.
func NewLibrary(rows Templates, now func() time.Time) (*Library, error) {
	if now == nil {
		now = time.Now
	}
	l := &Library{rows: rows, now: now}
	var shipped []struct {
		ID string `json:"id"`
		Draft
	}
	if err := json.Unmarshal(systemTemplates, &shipped); err != nil {
		return nil, fmt.Errorf("reading the templates that ship with the API: %w", err)
	}
	for _, s := range shipped {
		t := Template{ID: s.ID}
		if err := s.fill(&t); err != nil {
			return nil, fmt.Errorf("reading the template %s, which ships with the API: %w", s.ID, err)
		}
		l.system = append(l.system, t)
	}
	return l, nil
}

// List returns all templates that a user may see: everybody's first, then the
// user's own, the oldest first.
func (l *Library) List(ctx context.Context, userID string) ([]Template, error) {
	own, err := l.stored(ctx, userID)
	if err != nil {
		return nil, err
	}
	all := slices.Concat(l.system, own)
	slices.SortStableFunc(all, func(a, b Template) int {
		switch {
		case (a.UserID == nil) == (b.UserID == nil):
			return 0
		case a.UserID == nil:
			return -1
		default:
			return 1
		}
	})
	return all, nil
}

// stored returns the templates that a user may see and that do not ship.
func (l *Library) stored(ctx context.Context, userID string) ([]Template, error) {
	rows, err := l.rows.List(ctx, userID, Page{Limit: 2 * MaxTemplates}) // everybody's too
	if err != nil {
		return nil, fmt.Errorf("listing a user's templates: %w", err)
	}
	return rows, nil
}

// Create keeps a new template of a user. Errors: invalid_request.
func (l *Library) Create(ctx context.Context, userID string, d Draft) (Template, error) {
	now := l.now().UTC()
	t := Template{ID: templateIDPrefix + strings.ToLower(rand.Text()), UserID: &userID, CreatedAt: now, UpdatedAt: now}
	if err := d.fill(&t); err != nil {
		return Template{}, err
	}
	rows, err := l.stored(ctx, userID)
	if err != nil {
		return Template{}, err
	}
	own := 0
	for _, r := range rows {
		if r.UserID != nil {
			own++
		}
	}
	if own >= MaxTemplates {
		return Template{}, sandbox.Errorf(sandbox.CodeInvalidRequest, "you have %d templates already; delete one first", MaxTemplates)
	}
	if err := l.rows.Save(ctx, t); err != nil {
		return Template{}, fmt.Errorf("keeping a template: %w", err)
	}
	return t, nil
}

// Replace changes a user's own template. Errors: template_not_found,
// invalid_request.
func (l *Library) Replace(ctx context.Context, userID, id string, d Draft) (Template, error) {
	t, err := l.rows.Get(ctx, userID, id)
	if errors.Is(err, ErrNotFound) || err == nil && t.UserID == nil {
		return Template{}, templateNotFound()
	}
	if err != nil {
		return Template{}, fmt.Errorf("reading a template: %w", err)
	}
	t.UpdatedAt = l.now().UTC()
	if err := d.fill(&t); err != nil {
		return Template{}, err
	}
	if err := l.rows.Save(ctx, t); err != nil {
		return Template{}, fmt.Errorf("keeping a template: %w", err)
	}
	return t, nil
}

// Delete forgets a user's own template. Errors: template_not_found.
func (l *Library) Delete(ctx context.Context, userID, id string) error {
	err := l.rows.Delete(ctx, userID, id)
	if errors.Is(err, ErrNotFound) {
		return templateNotFound()
	}
	if err != nil {
		return fmt.Errorf("deleting a template: %w", err)
	}
	return nil
}

func templateNotFound() error {
	return sandbox.Errorf(sandbox.CodeTemplateNotFound, "you have no template of your own with this id; GET /api/v2/agents/templates lists them")
}

// fill checks a draft and writes it into a template.
func (d Draft) fill(t *Template) error {
	for _, f := range []struct {
		field, value string
		least, most  int
		lines        bool
	}{
		{"name", d.Name, 1, maxTemplateName, false},
		{"description", d.Description, 0, maxDescription, true},
		{"icon", d.Icon, 0, maxIcon, false},
		{"category", d.Category, 0, maxCategory, false},
		{"prompt", d.Prompt, 1, maxPrompt, true},
	} {
		if err := checkText(f.field, f.value, f.least, f.most, f.lines); err != nil {
			return err
		}
	}
	if len(d.Placeholders) > maxPlaceholders {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "a template has at most %d placeholders", maxPlaceholders)
	}
	seen := map[string]bool{}
	for i, p := range d.Placeholders {
		if err := p.check(fmt.Sprintf("placeholders[%d]", i)); err != nil {
			return err
		}
		if seen[p.Name] {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "two placeholders are called %q", p.Name)
		}
		seen[p.Name] = true
	}
	if d.Placeholders == nil {
		d.Placeholders = []Placeholder{}
	}
	placeholders, err := json.Marshal(d.Placeholders)
	if err != nil {
		return fmt.Errorf("writing placeholders: %w", err)
	}
	t.Name, t.Description, t.Icon, t.Category, t.Prompt, t.Placeholders = d.Name, d.Description, d.Icon, d.Category, d.Prompt, string(placeholders)
	return nil
}

func (p Placeholder) check(where string) error {
	if !placeholderName.MatchString(p.Name) {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "%s.name must be a letter and then up to 39 letters, digits or underscores", where)
	}
	if err := checkText(where+".label", p.Label, 1, maxLabel, false); err != nil {
		return err
	}
	if err := checkText(where+".defaultValue", p.DefaultValue, 0, maxDefault, p.Type == typeTextarea); err != nil {
		return err
	}
	switch p.Type {
	case typeText, typeTextarea:
		if len(p.Options) > 0 {
			return sandbox.Errorf(sandbox.CodeInvalidRequest, "%s.options are for a select alone", where)
		}
		return nil
	case typeSelect:
	default:
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "%s.type must be %s, %s or %s", where, typeText, typeTextarea, typeSelect)
	}
	if len(p.Options) == 0 || len(p.Options) > maxOptions {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "%s.options must be 1 to %d", where, maxOptions)
	}
	for _, option := range p.Options {
		if err := checkText(where+".options", option, 1, maxOption, false); err != nil {
			return err
		}
	}
	if p.DefaultValue != "" && !slices.Contains(p.Options, p.DefaultValue) {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "%s.defaultValue must be one of its options", where)
	}
	return nil
}

// checkText refuses a text that is too short or too long, in characters, or has
// control characters; with lines it may have line breaks and tabs.
func checkText(field, text string, least, most int, lines bool) error {
	if n := utf8.RuneCountInString(text); n > most || len(strings.TrimSpace(text)) < least {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "%s must have %d to %d characters", field, least, most)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && (!lines || !strings.ContainsRune("\n\r\t", r)) }) {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "%s has control characters", field)
	}
	return nil
}
