package benchreport

import (
	"strings"
	"testing"
)

func TestAPercentileIsTheSampleOfTheNearestRank(t *testing.T) {
	t.Parallel()
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, tc := range []struct {
		name    string
		samples []float64
		p       int
		want    float64
	}{
		{"the median of a hundred", hundred, 50, 50},
		{"p99 of a hundred", hundred, 99, 99},
		{"p99 of few is the largest", []float64{2, 3, 1}, 99, 3},
		{"any of one is that one", []float64{7}, 50, 7},
	} {
		if got := Percentile(tc.samples, tc.p); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestARowSaysWhetherItMetItsAim(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		aim  *Aim
		want string
	}{
		{"the median", AtMost("p50", 2), "p50 ≤ 2.00 ms: met"},
		{"the largest", AtMost("max", 8), "max ≤ 8.00 ms: missed"},
		{"the ratio of medians", AtMost("ratio", 2), "ratio ≤ 2.00: met"},
		{"what p99 adds misses it alone", AtMost("added", 5), "added ≤ 5.00 ms: missed (p50 1.00, p99 8.00)"},
		{"what both add", AtMost("added", 8), "added ≤ 8.00 ms: met (p50 1.00, p99 8.00)"},
		{"what the median adds", AtMost("added p50", 0.5), "added p50 ≤ 0.500 ms: missed (1.00)"},
		{"what is to be more", AtLeast("ratio", 2), "ratio ≥ 2.00: met"},
		{"two aims, of which one is missed", Both(AtMost("added p50", 1), AtMost("added p99", 2)), "added p50 ≤ 1.00 ms: met (1.00); added p99 ≤ 2.00 ms: missed (8.00)"},
		{"without an aim there is nothing to say", nil, ""},
	} {
		r := Row{Name: "a", Unit: "ms", Samples: []float64{1, 2, 9}, Baseline: Against("b", []float64{1, 1, 1}), Aim: tc.aim}
		if got := markdown([]Row{r}); !strings.HasSuffix(got, "| "+tc.want+" |\n") {
			t.Errorf("%s: %q, want it to end with %q", tc.name, got, tc.want)
		}
	}
}
