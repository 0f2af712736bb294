package store

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strings"
)

// Delete implements Store.
func (d *Directory) Delete(ctx context.Context, key string) error {
	if err := errors.Join(CheckKey(key), ctx.Err()); err != nil {
		return err
	}
	p := placeOf(key)
	touched, err := d.remove(p)
	if err != nil {
		return failed("deleting", key, err)
	}
	if touched == "" {
		return nil
	}
	if err := d.disk.settle(touched); err != nil {
		return failed("deleting", key, err)
	}
	return nil
}

// remove removes an object and the folders that it leaves empty. It returns the
// last folder that it removed a name from, or "" if there was nothing.
func (d *Directory) remove(p place) (string, error) {
	d.names.Lock()
	defer d.names.Unlock()
	name, stat, err := d.locate(p)
	if stat == nil {
		if absent(err) {
			return "", nil
		}
		return "", err
	}
	if err := d.root.Remove(name); err != nil {
		return "", err
	}
	if err := d.root.Remove(p.meta()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return d.prune(p.folder), nil
}

// prune removes folders that are empty, from one upwards, and returns the first
// that stays.
func (d *Directory) prune(folder string) string {
	for folder != "." && d.root.Remove(folder) == nil {
		d.disk.forget(folder)
		folder = path.Dir(folder)
	}
	return folder
}

// DeletePrefix implements Store. All objects are gone in one step.
func (d *Directory) DeletePrefix(ctx context.Context, prefix string) error {
	if err := errors.Join(checkDeletable(prefix), ctx.Err()); err != nil {
		return err
	}
	folder := folderOf(prefix)
	aside := path.Join(d.temp, randomName())
	touched, err := d.moveAside(folder, aside)
	if err != nil {
		return failed("deleting", prefix, err)
	}
	if touched == "" {
		return nil
	}
	if err := d.disk.settle(touched); err != nil {
		return failed("deleting", prefix, err)
	}
	if err := d.root.RemoveAll(aside); err != nil {
		return failed("deleting", prefix, err)
	}
	return nil
}

func (d *Directory) moveAside(folder, aside string) (string, error) {
	d.names.Lock()
	defer d.names.Unlock()
	stat, err := d.root.Lstat(folder)
	if absent(err) || err == nil && !stat.IsDir() {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if err := d.root.Rename(folder, aside); err != nil {
		return "", err
	}
	d.disk.forgetBelow(folder)
	return d.prune(path.Dir(folder)), nil
}

// branch is a folder that is still to be listed: its path, the key's elements
// that lead to it, and the chunks that the next element begins with.
type branch struct {
	folder, prefix, chunks string
}

// List implements Store.
func (d *Directory) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := CheckPrefix(prefix); err != nil {
			yield(Info{}, err)
			return
		}
		todo := []branch{{folder: folderOf(prefix), prefix: prefix}}
		for len(todo) > 0 {
			last := len(todo) - 1
			at := todo[last]
			below, ok := d.listFolder(ctx, at, yield)
			if !ok {
				return
			}
			todo = append(todo[:last], below...)
		}
	}
}

// listFolder yields the objects in a folder and returns the folders in it. It
// returns false if the listing is to end.
func (d *Directory) listFolder(ctx context.Context, at branch, yield func(Info, error) bool) ([]branch, bool) {
	folder, entries, err := d.readFolder(at.folder)
	if absent(err) {
		return nil, true
	}
	if err != nil {
		yield(Info{}, failed("listing", at.prefix, err))
		return nil, false
	}
	defer folder.Close()
	var below []branch
	for _, entry := range entries {
		if ctx.Err() != nil {
			yield(Info{}, context.Cause(ctx))
			return nil, false
		}
		name := entry.Name()
		if entry.IsDir() {
			if b, ok := at.step(name); ok {
				below = append(below, b)
			}
			continue
		}
		element, ok := elementOf(at.chunks + strings.TrimSuffix(name, fileSuffix))
		if !ok || !entry.Type().IsRegular() {
			continue
		}
		stat, err := folder.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since the folder was read
		}
		if err != nil {
			yield(Info{}, failed("listing", at.prefix, err))
			return nil, false
		}
		if !yield(infoOf(at.prefix+element, stat), nil) {
			return nil, false
		}
	}
	return below, true
}

// readFolder reads a folder's names in one step, so that an object that is moved
// aside is not missed.
func (d *Directory) readFolder(name string) (*os.Root, []fs.DirEntry, error) {
	d.names.RLock()
	defer d.names.RUnlock()
	if stat, err := d.root.Lstat(name); err != nil || !stat.IsDir() {
		return nil, nil, cmp.Or(err, fs.ErrNotExist)
	}
	root, err := d.root.OpenRoot(name)
	if err != nil {
		return nil, nil, err
	}
	folder, err := root.Open(".")
	if err != nil {
		_ = root.Close()
		return nil, nil, err
	}
	entries, err := folder.ReadDir(-1)
	_ = folder.Close()
	if err != nil {
		_ = root.Close()
		return nil, nil, err
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return root, entries, nil
}

// step goes down into a folder, if it is ours.
func (b branch) step(name string) (branch, bool) {
	next := branch{folder: path.Join(b.folder, name), prefix: b.prefix}
	if chunk, more := strings.CutSuffix(name, moreSuffix); more {
		next.chunks = b.chunks + chunk
		return next, true
	}
	element, ok := elementOf(b.chunks + name)
	next.prefix += element + "/"
	return next, ok
}

// Probe implements Store.
func (d *Directory) Probe(ctx context.Context) error {
	if err := probe(ctx, d); err != nil {
		return failedProbe("the directory "+d.root.Name(), err)
	}
	return nil
}
