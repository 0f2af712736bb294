// Package metricstest holds what is written about a program's figures against what
// the program shows.
package metricstest

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Page is what a program shows of its figures, by name.
type Page map[string]*dto.MetricFamily

// Parse reads a page in Prometheus' text format.
func Parse(t testing.TB, text string) Page {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	page, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("no page of figures: %v\n%.2000s", err, text)
	}
	return page
}

// Of returns what collectors show at this moment.
func Of(t testing.TB, collectors ...prometheus.Collector) Page {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	for _, c := range collectors {
		if err := registry.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	page := Page{}
	for _, f := range families {
		page[f.GetName()] = f
	}
	return page
}

// Series is how many series there are, each bucket of a histogram being one.
func (p Page) Series() int {
	n := 0
	for _, family := range p {
		for _, m := range family.GetMetric() {
			n += 1 + len(m.GetHistogram().GetBucket())
		}
	}
	return n
}

// Sum adds up the rows of a figure that have these labels, given as name and value
// in turn. Of a histogram it is how much was observed.
func (p Page) Sum(name string, labels ...string) float64 {
	sum := 0.0
	for _, m := range p[name].GetMetric() {
		has := map[string]string{}
		for _, l := range m.GetLabel() {
			has[l.GetName()] = l.GetValue()
		}
		fits := true
		for i := 0; i+1 < len(labels); i += 2 {
			fits = fits && has[labels[i]] == labels[i+1]
		}
		if fits {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

// Figure is what the tables say of a figure.
type Figure struct {
	Kind   string // such as "histogram"
	Labels []string
}

// figure and word are a row of a table, and what is a name in it.
var (
	figure = regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ([a-z]+) \\| ([^|]*)\\|")
	word   = regexp.MustCompile("`([a-z_]+)`")
)

// Tables returns what the sections of a Markdown file with these headings say of
// figures; without a heading it is the whole file.
func Tables(t testing.TB, path string, headings ...string) map[string]Figure {
	t.Helper()
	raw, err := os.ReadFile(path) //nolint:gosec // a path of the test's own
	if err != nil {
		t.Fatal(err)
	}
	sections := []string{string(raw)}
	if len(headings) > 0 {
		sections = nil
	}
	for _, heading := range headings {
		_, section, found := strings.Cut(string(raw), "\n## "+heading+"\n")
		if !found {
			t.Fatalf("%s has no section %q", path, heading)
		}
		section, _, _ = strings.Cut(section, "\n## ")
		sections = append(sections, section)
	}
	all := map[string]Figure{}
	for _, section := range sections {
		for _, row := range figure.FindAllStringSubmatch(section, -1) {
			f := Figure{Kind: row[2]}
			for _, label := range word.FindAllStringSubmatch(row[3], -1) {
				f.Labels = append(f.Labels, label[1])
			}
			slices.Sort(f.Labels)
			all[row[1]] = f
		}
	}
	return all
}

// Documented fails the test unless a page has each figure of the tables under the
// headings of a Markdown file, of that kind and with those labels, and no other:
// those of Go and of the process are left alone.
func (p Page) Documented(t testing.TB, path string, headings ...string) {
	t.Helper()
	tables := Tables(t, path, headings...)
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		family, there := p[name]
		if !there {
			t.Errorf("%s is documented and not shown", name)
			continue
		}
		if kind := strings.ToLower(family.GetType().String()); kind != tables[name].Kind {
			t.Errorf("%s is a %s, and is documented as a %s", name, kind, tables[name].Kind)
		}
		for _, m := range family.GetMetric() {
			labels := []string{}
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName())
			}
			slices.Sort(labels)
			if !slices.Equal(labels, tables[name].Labels) {
				t.Errorf("%s has the labels %v, and is documented with %v", name, labels, tables[name].Labels)
				break
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p)) {
		_, known := tables[name]
		if !known && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") && !strings.HasPrefix(name, "promhttp_") {
			t.Errorf("%s is shown and not documented", name)
		}
	}
}
