package task

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestTheTemplatesThatShipAreSound(t *testing.T) {
	t.Parallel()
	l, err := NewLibrary(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(l.system) < 8 {
		t.Errorf("only %d templates ship", len(l.system))
	}
	gap := regexp.MustCompile(`\{\{(.*?)\}\}`)
	id := regexp.MustCompile(`^system-[a-z]+(-[a-z]+)*$`)
	ids, names := map[string]bool{}, map[string]bool{}
	for _, template := range l.system {
		if !id.MatchString(template.ID) || ids[template.ID] || names[template.Name] {
			t.Errorf("%s (%s) is a bad id or a name taken", template.ID, template.Name)
		}
		ids[template.ID], names[template.Name] = true, true
		if template.UserID != nil || template.Description == "" || template.Icon == "" || template.Category == "" {
			t.Errorf("%s: %+v", template.ID, template)
		}
		var placeholders []Placeholder
		if err := json.Unmarshal([]byte(template.Placeholders), &placeholders); err != nil {
			t.Fatal(err)
		}
		var declared, used []string
		for _, p := range placeholders {
			declared = append(declared, p.Name)
			if !p.Required && p.DefaultValue == "" {
				t.Errorf("%s: %s may be left out and leaves a gap then", template.ID, p.Name)
			}
		}
		for _, m := range gap.FindAllStringSubmatch(template.Prompt, -1) {
			used = append(used, m[1])
		}
		slices.Sort(declared)
		slices.Sort(used)
		if used = slices.Compact(used); len(used) == 0 || !slices.Equal(declared, used) {
			t.Errorf("%s declares %v and uses %v", template.ID, declared, used)
		}
		if rest := gap.ReplaceAllString(template.Prompt, ""); strings.Contains(rest, "{{") || strings.Contains(rest, "}}") {
			t.Errorf("%s has a broken gap", template.ID)
		}
	}
}
