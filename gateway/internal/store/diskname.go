package store

import (
	"path"
	"strings"
	"unicode/utf8"
)

// How keys lie on disk. An ordinary key is its own path. Beyond that:
//
//	%25     in a name is the key's '%'; every other use of '%' is ours
//	X%file  is the object at X, if a folder X is in its place
//	X%meta  is the content type and metadata of the object X
//	X%~     is a folder that holds the rest of an element too long for one name
//	%tmp    holds what is being written; it is emptied when the store is opened
//	%visit-…  holds what a visitor's probe is writing; it goes with the visitor
//
// Names with any other '%', symlinks, sockets and the like are not ours: they
// are neither listed nor followed.
const (
	fileSuffix  = "%file"
	metaSuffix  = "%meta"
	moreSuffix  = "%~"
	tempFolder  = "%tmp"
	visitPrefix = "%visit-"
	// chunkLimit is how long a name gets before a suffix; file systems have 255.
	chunkLimit = 240
)

// place is where a key lies: folder is "." or a path, name the object's in it.
type place struct {
	folder, name string
}

func (p place) file() string      { return path.Join(p.folder, p.name) }
func (p place) otherFile() string { return p.file() + fileSuffix }
func (p place) meta() string      { return p.file() + metaSuffix }

// placeOf returns where a legal key lies.
func placeOf(key string) place {
	var names []string
	for element := range strings.SplitSeq(key, "/") {
		names = appendElement(names, element)
	}
	last := len(names) - 1
	return place{folder: path.Join(append([]string{"."}, names[:last]...)...), name: names[last]}
}

// folderOf returns where what begins with a legal prefix lies.
func folderOf(prefix string) string {
	key := strings.TrimSuffix(prefix, "/")
	if key == "" {
		return "."
	}
	return placeOf(key).file()
}

// appendElement appends the names that one element of a key has on disk. The
// chunks of a long one are about even, so that none is "." or "..".
func appendElement(names []string, element string) []string {
	rest := strings.ReplaceAll(element, "%", "%25")
	for parts := (len(rest) + chunkLimit - 1) / chunkLimit; parts > 1; parts-- {
		cut := (len(rest) + parts - 1) / parts
		for cut > 1 && !utf8.RuneStart(rest[cut]) {
			cut--
		}
		names = append(names, rest[:cut]+moreSuffix)
		rest = rest[cut:]
	}
	return append(names, rest)
}

// elementOf is appendElement backwards, over chunks put together again. It
// returns false for a name that is not ours.
func elementOf(name string) (string, bool) {
	element := strings.ReplaceAll(name, "%25", "%")
	return element, strings.ReplaceAll(element, "%", "%25") == name && element != ""
}
