package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// probe is Probe's work, for any store. What it puts is in a folder of its own, which
// goes with it: nobody else who probes at the same time can take it away.
func probe(ctx context.Context, s Store) error {
	key := "probe-" + randomName() + "/object"
	err := probeAt(ctx, s, key)
	if gone := s.Delete(ctx, key); err == nil && gone != nil {
		return fmt.Errorf("deleting a small object: %w", gone)
	}
	return err
}

func probeAt(ctx context.Context, s Store, key string) error {
	put := func(content string, opts PutOptions) (Info, error) {
		return s.Put(ctx, key, strings.NewReader(content), int64(len(content)), opts)
	}
	first, err := put("first", PutOptions{IfAbsent: true})
	if err != nil {
		return unsupported("creating a small object with the condition that it is new (If-None-Match)", err)
	}
	switch _, err := put("second", PutOptions{IfAbsent: true}); {
	case err == nil:
		return lacking("it overwrites an object in spite of If-None-Match: *")
	case !errors.Is(err, ErrExists):
		return unsupported("creating an object again", err)
	}
	switch _, err := put("third", PutOptions{IfMatch: ETag(strings.Repeat("0", 32))}); {
	case err == nil:
		return lacking("it overwrites an object in spite of an If-Match that does not fit")
	case !errors.Is(err, ErrChanged):
		return unsupported("replacing an object with a condition (If-Match)", err)
	}
	switch second, err := put("fourth", PutOptions{IfMatch: first.ETag}); {
	case errors.Is(err, ErrChanged):
		return lacking("it does not know the ETag again that it gave; a file system must keep times to the nanosecond")
	case err != nil:
		return unsupported("replacing an object with a condition (If-Match)", err)
	case second.ETag == first.ETag:
		return lacking("it gives two contents the same ETag")
	}
	if err := probeRead(ctx, s, key, "fourth"); err != nil {
		return err
	}
	return probeList(ctx, s, key)
}

func probeList(ctx context.Context, s Store, key string) error {
	for info, err := range s.List(ctx, strings.TrimSuffix(key, "object")) {
		if err != nil {
			return fmt.Errorf("listing a small object: %w", err)
		}
		if info.Key == key {
			return nil
		}
	}
	return refused(errors.New("a small object is not listed"))
}

func probeRead(ctx context.Context, s Store, key, want string) error {
	body, _, err := s.Get(ctx, key, Range{})
	if err != nil {
		return fmt.Errorf("reading a small object: %w", err)
	}
	defer body.Close()
	got, err := io.ReadAll(io.LimitReader(body, 100))
	if err != nil {
		return fmt.Errorf("reading a small object: %w", err)
	}
	if string(got) != want {
		return refused(errors.New("a small object was read back as something else"))
	}
	return nil
}

// unsupported is for an error of a call with a condition, which may be the
// server's way to say that it knows none.
func unsupported(doing string, err error) error {
	if errors.Is(err, ErrNoConditions) {
		return lacking("it says so itself: " + err.Error())
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func lacking(how string) error {
	return refused(fmt.Errorf("it has no conditional writes (%s), so two gateways could overwrite each other's work: use a server that has them, such as AWS S3, R2 or versitygw", how), ErrNoConditions) //nolint:err113 // a sentence for people; refused adds what programs need
}

func failedProbe(which string, err error) error {
	return fmt.Errorf("%s cannot be used as the store: %w", which, err)
}
