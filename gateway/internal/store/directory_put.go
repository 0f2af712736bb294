package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
)

// Put implements Store.
func (d *Directory) Put(ctx context.Context, key string, body io.Reader, size int64, opts PutOptions) (Info, error) {
	if err := errors.Join(checkPut(key, size, opts), ctx.Err()); err != nil {
		return Info{}, err
	}
	p := placeOf(key)
	if opts.conditional() { // an early answer spares the work; commit's is what counts
		stat, err := d.look(p)
		if err := meets(key, stat, err, opts); err != nil {
			return Info{}, err
		}
	}
	temp := path.Join(d.temp, randomName())
	info, err := d.writeTemp(newSource(ctx, body, size), temp, key, opts)
	if err == nil {
		err = d.publish(p, temp, info, opts)
	}
	if err != nil {
		_ = d.root.Remove(temp)
		return Info{}, err
	}
	if err := d.disk.settle(p.folder); err != nil {
		return Info{}, failed("putting", key, err)
	}
	info.ContentType, info.Metadata = contentTypeOf(opts.ContentType), lowered(opts.Metadata)
	return info, nil
}

// writeTemp writes a body to the disk, under a name that nobody sees.
func (d *Directory) writeTemp(body *source, temp, key string, opts PutOptions) (info Info, err error) {
	file, err := d.root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fileMode)
	if err != nil {
		return Info{}, failed("putting", key, err)
	}
	defer func() {
		if closed := file.Close(); closed != nil && err == nil {
			err = failed("putting", key, closed)
		}
	}()
	var limited io.Reader = body
	if opts.conditional() {
		limited = io.LimitReader(body, ConditionalLimit+1)
	}
	hash := sha256.New()
	size, err := io.Copy(io.MultiWriter(file, hash), limited)
	switch {
	case body.err != nil:
		return Info{}, fmt.Errorf("putting %q: %w", key, body.err)
	case err != nil:
		return Info{}, failed("putting", key, err)
	case opts.conditional() && size > ConditionalLimit:
		return Info{}, tooLarge(key)
	}
	modified := d.stamp.next()
	if err := d.root.Chtimes(temp, modified, modified); err != nil {
		return Info{}, failed("putting", key, err)
	}
	if err := file.Sync(); err != nil {
		return Info{}, failed("putting", key, err)
	}
	return Info{
		Key: key, Size: size, Modified: modified, ETag: etagOf(modified, size),
		SHA256: hex.EncodeToString(hash.Sum(nil)),
	}, nil
}

func (d *Directory) look(p place) (fs.FileInfo, error) {
	d.names.RLock()
	defer d.names.RUnlock()
	_, stat, err := d.locate(p)
	return stat, err
}

// meets returns nil if what locate found meets a Put's conditions.
func meets(key string, stat fs.FileInfo, err error, opts PutOptions) error {
	switch {
	case err != nil && !absent(err):
		return failed("putting", key, err)
	case opts.IfAbsent && stat != nil:
		return fmt.Errorf("putting %q: %w", key, ErrExists)
	case opts.IfMatch != "" && (stat == nil || infoOf(key, stat).ETag != opts.IfMatch):
		return fmt.Errorf("putting %q: %w", key, ErrChanged)
	}
	return nil
}

// publish gives a written object its name, if the conditions are met.
func (d *Directory) publish(p place, temp string, info Info, opts PutOptions) error {
	fresh := attributes{ContentType: opts.ContentType, Metadata: lowered(opts.Metadata)}
	if fresh.empty() {
		return d.commit(p, temp, info, opts, nil)
	}
	stat, _ := d.look(p) // on an error, commit meets it again
	made, err := d.draftMeta(p, stat, info, fresh)
	if err == nil {
		err = d.commit(p, temp, info, opts, &made)
	} else {
		err = failed("putting", info.Key, err)
	}
	if err != nil {
		_ = d.root.Remove(made.temp)
	}
	return err
}

// commit is the step of publish that nobody sees half of. made is nil if there
// is nothing to come with the object.
func (d *Directory) commit(p place, temp string, info Info, opts PutOptions, made *draft) error {
	d.names.Lock()
	defer d.names.Unlock()
	_, stat, err := d.locate(p)
	if err := meets(info.Key, stat, err, opts); err != nil {
		return err
	}
	if err := d.makeFolders(p.folder); err != nil {
		return failed("making the folders of", info.Key, err)
	}
	if made != nil {
		if err := d.commitMeta(p, stat, info, opts, made); err != nil {
			return failed("putting", info.Key, err)
		}
	}
	name, _, _ := d.locate(p) // not as before, if a folder was just made room for
	if err := d.root.Rename(temp, name); err != nil {
		return failed("putting", info.Key, err)
	}
	if made == nil {
		_ = d.root.Remove(p.meta()) // it would say nothing of the new object, so it may as well stay
	}
	return nil
}

// commitMeta puts the new sidecar in place. It still speaks for the object that
// is there, until that is replaced.
func (d *Directory) commitMeta(p place, stat fs.FileInfo, info Info, opts PutOptions, made *draft) error {
	var now ETag
	if stat != nil {
		now = infoOf(info.Key, stat).ETag
	}
	if now != made.old { // somebody was faster: once more, with nobody else about
		again, err := d.draftMeta(p, stat, info, attributes{ContentType: opts.ContentType, Metadata: lowered(opts.Metadata)})
		if err != nil {
			return errors.Join(err, d.root.Remove(again.temp))
		}
		if err := d.root.Remove(made.temp); err != nil {
			return err
		}
		*made = again
	}
	return d.root.Rename(made.temp, p.meta())
}

// makeFolders makes the folders that an object needs, and moves aside the
// objects that have their names.
func (d *Directory) makeFolders(folder string) error {
	if folder == "." {
		return nil
	}
	if stat, err := d.root.Lstat(folder); err == nil && stat.IsDir() {
		return nil
	}
	if err := d.makeFolders(path.Dir(folder)); err != nil {
		return err
	}
	if stat, err := d.root.Lstat(folder); err == nil && stat.Mode().IsRegular() {
		if err := d.root.Rename(folder, folder+fileSuffix); err != nil {
			return err
		}
	}
	d.disk.forget(folder)
	return d.root.Mkdir(folder, folderMode)
}
