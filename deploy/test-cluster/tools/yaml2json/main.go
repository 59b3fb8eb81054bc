// Reads YAML documents from standard input and writes them as one JSON list, for scripts in languages without a YAML parser at hand.
// Empty documents are left out. A key that is there twice is an error.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

func run() error {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(os.Stdin))
	out := bufio.NewWriter(os.Stdout)
	separator := "["
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		json, err := yaml.YAMLToJSONStrict(document)
		if err != nil {
			return err
		}
		if string(json) == "null" {
			continue
		}
		fmt.Fprintf(out, "%s%s", separator, json)
		separator = ",\n"
	}
	if separator == "[" {
		fmt.Fprint(out, "[")
	}
	fmt.Fprintln(out, "]")
	return out.Flush()
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "yaml2json:", err)
		os.Exit(1)
	}
}
