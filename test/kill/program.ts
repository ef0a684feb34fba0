/**
 * Makes child.ts a program of plain JavaScript over dist/, so that a killed process is started again in
 * tens of milliseconds: the two files without their types, beside a copy of what the build made, so that
 * a long run goes on with what it began with. Called by rounds.ts, once a run.
 */
import { cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';

const ROOT: string = join(import.meta.dirname, '..', '..');
const FILES: readonly string[] = ['plan.ts', 'child.ts'];

/** The program's path. Requires: the build has been made. */
export function makeProgram(directory: string): string {
  const target = join(directory, 'test', 'kill');
  mkdirSync(target, { recursive: true });
  for (const room of ['core', 'actors']) {
    cpSync(join(ROOT, 'dist', room), join(directory, room), { recursive: true });
  }
  symlinkSync(join(ROOT, 'node_modules'), join(directory, 'node_modules'));
  writeFileSync(join(directory, 'package.json'), '{ "type": "module" }\n');
  for (const name of FILES) {
    const source = readFileSync(join(import.meta.dirname, name), 'utf8');
    const { outputText } = ts.transpileModule(source, {
      fileName: name,
      compilerOptions: {
        module: ts.ModuleKind.ESNext,
        target: ts.ScriptTarget.ES2022,
        verbatimModuleSyntax: true,
        rewriteRelativeImportExtensions: true,
      },
    });
    writeFileSync(join(target, name.replace(/\.ts$/, '.js')), outputText);
  }
  return join(target, 'child.js');
}
