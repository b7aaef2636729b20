/* Sphinx 9.0 calls the stemmer of Chinese pages by a name that it does not define; it is the English one. */
window.ChineseStemmer = function () {
  return new EnglishStemmer();
};
