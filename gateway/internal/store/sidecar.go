package store

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// attributes are what an object comes with besides its bytes.
type attributes struct {
	ContentType string            `json:"contentType,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
}

func (a attributes) empty() bool {
	return contentTypeOf(a.ContentType) == defaultContentType && len(a.Metadata) == 0
}

// sidecar is the file beside an object that comes with something. It names the
// state of the object that each entry is for: an object and its sidecar cannot
// be replaced in one step, so the sidecar goes first and holds the new state's
// and the old one's. What is for a state that the object is not in means nothing.
type sidecar map[ETag]attributes

// sidecarLimit bounds what is read of a sidecar in bytes; two states take less.
const sidecarLimit = 64 << 10

// readMeta returns an object's sidecar, nil if it has none.
func (d *Directory) readMeta(p place) (sidecar, error) {
	file, err := d.root.OpenFile(p.meta(), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if absent(err) {
		return nil, nil //nolint:nilnil // most objects have none, and a nil map reads as such
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, sidecarLimit))
	if err != nil {
		return nil, err
	}
	kept := sidecar{}
	if json.Unmarshal(raw, &kept) != nil {
		return sidecar{}, nil // a foreign file, and what it says is not known
	}
	return kept, nil
}

// draft is a sidecar on the disk that has not got its name yet.
type draft struct {
	temp string
	old  ETag // of the object that it also speaks for, "" if there is none
}

// draftMeta writes the sidecar that an object is to be replaced with. Called
// with names held, or without if commit is to look whether it still fits.
func (d *Directory) draftMeta(p place, stat fs.FileInfo, info Info, fresh attributes) (draft, error) {
	kept := sidecar{info.ETag: fresh}
	made := draft{temp: path.Join(d.temp, randomName())}
	if stat != nil {
		made.old = infoOf(info.Key, stat).ETag
		before, err := d.readMeta(p)
		if err != nil {
			return draft{}, err
		}
		if was := before[made.old]; !was.empty() {
			kept[made.old] = was
		}
	}
	raw, err := json.Marshal(kept)
	if err != nil {
		return draft{}, err
	}
	file, err := d.root.OpenFile(made.temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fileMode)
	if err != nil {
		return draft{}, err
	}
	_, err = file.Write(raw)
	return made, errors.Join(err, file.Sync(), file.Close())
}
