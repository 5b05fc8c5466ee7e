// The package is CommonJS, and its default export does not survive being imported by a module.
export { Scrollbars as default } from './node_modules/react-custom-scrollbars-2/lib/index.js';
