/**
 * Turns the bench's own TypeScript into plain JavaScript, file by file and unchecked, so that the
 * children run without a loader: tsx would start in every worker thread of the engine under
 * measurement and be counted as its memory and start-up time. Called by main.ts.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import ts from 'typescript';

const SKIPPED: ReadonlySet<string> = new Set(['node_modules', 'results']);

export function compileBench(source: string, target: string): void {
  for (const file of sourcesIn(source)) {
    const { outputText } = ts.transpileModule(readFileSync(file, 'utf8'), {
      fileName: file,
      compilerOptions: {
        module: ts.ModuleKind.ESNext,
        target: ts.ScriptTarget.ES2022,
        verbatimModuleSyntax: true,
        rewriteRelativeImportExtensions: true,
      },
    });
    const output = join(target, relative(source, file)).replace(/\.ts$/, '.js');
    mkdirSync(dirname(output), { recursive: true });
    writeFileSync(output, outputText);
  }
}

function* sourcesIn(directory: string): Generator<string> {
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    if (entry.isDirectory()) {
      if (!SKIPPED.has(entry.name)) yield* sourcesIn(join(directory, entry.name));
    } else if (entry.name.endsWith('.ts')) {
      yield join(directory, entry.name);
    }
  }
}
