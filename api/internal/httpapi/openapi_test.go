package httpapi

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// documentable are the methods that OpenAPI has a word for, and the API a use.
func documentable() []string {
	return []string{"GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"}
}

// document is what the tests read of the OpenAPI document.
type document struct {
	Paths      map[string]map[string]any
	Components map[string]map[string]any
}

func readDocument(t testing.TB) document {
	t.Helper()
	var doc document
	if err := yaml.Unmarshal(openapiYAML, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestTheDocumentHasEveryRouteAndNoOther(t *testing.T) {
	t.Parallel()
	var documented []string
	name := regexp.MustCompile(`\{\w+\}`)
	for path, item := range readDocument(t).Paths {
		for method := range item {
			if method != "parameters" {
				documented = append(documented, strings.ToUpper(method)+" "+name.ReplaceAllString(path, "{}"))
			}
		}
	}
	var served []string
	param := regexp.MustCompile(`:\w+|\*`)
	for _, r := range newWorld(t, sqlite(t), options{}).api.echo.Routes() {
		path := param.ReplaceAllString(r.Path, "{}")
		wild := strings.HasPrefix(path, "/api/v2/sandboxes/{}/")
		if wild && (strings.HasSuffix(path, "/files") || strings.HasSuffix(path, "/opencode")) {
			continue // the same route with an empty path
		}
		if wild && strings.Contains(path, "/opencode/") && !slices.Contains(documentable(), r.Method) {
			continue
		}
		route := r.Method + " " + path
		served = append(served, route)
	}
	for _, route := range documented {
		if !slices.Contains(served, route) {
			t.Errorf("%s is documented and not served", route)
		}
	}
	for _, route := range served {
		if !slices.Contains(documented, route) {
			t.Errorf("%s is served and not documented", route)
		}
	}
}

// each calls visit with every object in a document, and with where it is.
func each(at string, node any, visit func(at string, object map[string]any)) {
	switch node := node.(type) {
	case map[string]any:
		visit(at, node)
		for name, child := range node {
			each(at+"/"+name, child, visit)
		}
	case []any:
		for _, child := range node {
			each(at, child, visit)
		}
	}
}

func TestTheDocumentIsWholeInItself(t *testing.T) {
	t.Parallel()
	doc := readDocument(t)
	used := map[string]bool{}
	var all any
	if err := yaml.Unmarshal(openapiYAML, &all); err != nil {
		t.Fatal(err)
	}
	each("", all, func(at string, object map[string]any) {
		if ref, ok := object["$ref"].(string); ok {
			used[ref] = true
			parts := strings.Split(ref, "/")
			if len(parts) != 4 || doc.Components[parts[2]][parts[3]] == nil {
				t.Errorf("%s refers to %s, which is nowhere", at, ref)
			}
		}
		if requirements, ok := object["security"].([]any); ok {
			for _, r := range requirements {
				each(at, r, func(at string, scheme map[string]any) {
					for name := range scheme {
						used["#/components/securitySchemes/"+name] = true
						if doc.Components["securitySchemes"][name] == nil {
							t.Errorf("%s wants %s, which is nowhere", at, name)
						}
					}
				})
			}
		}
	})
	for kind, parts := range doc.Components {
		for name := range parts {
			if ref := "#/components/" + kind + "/" + name; !used[ref] {
				t.Errorf("nothing uses %s", ref)
			}
		}
	}
	name := regexp.MustCompile(`\{(\w+)\}`)
	for path, item := range doc.Paths {
		var given []string
		parameters, _ := item["parameters"].([]any)
		for _, p := range parameters {
			object, _ := p.(map[string]any)
			if ref, ok := object["$ref"].(string); ok {
				object, _ = doc.Components["parameters"][ref[strings.LastIndex(ref, "/")+1:]].(map[string]any)
			}
			if in, _ := object["in"].(string); in == "path" {
				n, _ := object["name"].(string)
				given = append(given, n)
			}
		}
		var wanted []string
		for _, m := range name.FindAllStringSubmatch(path, -1) {
			wanted = append(wanted, m[1])
		}
		if !slices.Equal(wanted, given) {
			t.Errorf("%s describes the parameters %v", path, given)
		}
		for method, operation := range item {
			o, ok := operation.(map[string]any)
			if !ok {
				continue
			}
			if o["summary"] == nil || o["responses"] == nil || o["tags"] == nil {
				t.Errorf("%s %s lacks a summary, tags or responses", method, path)
			}
		}
	}
}

func TestTheDocumentIsEverybodys(t *testing.T) {
	t.Parallel()
	resp, body := newWorld(t, sqlite(t), options{}).send(t, "GET", "/openapi.yaml", "")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/yaml" || body != string(openapiYAML) {
		t.Errorf("%d %v %.80s", resp.StatusCode, resp.Header, body)
	}
}
